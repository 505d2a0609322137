# Sourced by shell tests from the top folder: where the programs are, one locale, and the counting of checks.
BUILD=${BUILD:-.build}
TSAR=${TSAR:-$BUILD/tsar}
LC_ALL=C
export LC_ALL
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

status() { # EXPECTED COMMAND...: whether it ends with that status
    expected=$1
    shift
    "$@" >/dev/null 2>&1
    [ $? -eq "$expected" ]
}

check_folder() { # NAME: an empty folder of the test's own becomes the current one; BUILD and TSAR hold from there
    case $BUILD in /*) ;; *) BUILD=$PWD/$BUILD ;; esac
    case $TSAR in /*) ;; *) TSAR=$PWD/$TSAR ;; esac
    dir=$BUILD/$1
    rm -rf "$dir"
    mkdir -p "$dir"
    cd "$dir" || exit 1
    check_log=check.log
}

check_end() { # the closing line, and the status of the test
    echo "$passed passed, $failed failed"
    [ $failed -eq 0 ]
}
