# Sourced by shell tests: counts checks.
passed=0
failed=0

check() { # DESCRIPTION COMMAND...: passes if the command succeeds; its output goes to $check_log
    what=$1
    shift
    if "$@" >"$check_log" 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $what: $(tail -n 2 "$check_log")"
    fi
}

check_end() { # the closing line, and the status of the test
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ]
}
