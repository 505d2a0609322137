#!/bin/sh
# The study's figure from its page: quality against forward passes of all methods, with the models' own sampling.
#
#     sh weights/train/figure.sh TRAIN PAGE PNG
set -eu
awk -F '|' '
    function trim(s) { gsub(/^ +| +$/, "", s); return s }
    function put(series, label, side, more) { # of a row: share, and its interval in brackets
        split(trim($share), part, /[() ]+/)
        printf "%s\t%s\t%s\t%.1f\t%s\t%s\t%s\n", series, label, side, trim($passes) + more, part[1], part[2], part[4]
    }
    /^## / { section = $0; next }
    /^\| run / { # columns by their names
        sampling = 0
        for (i = 2; i < NF; i++) {
            name = trim($i)
            if (name ~ /^overall/) share = i
            if (name == "passes") passes = i
            if (name == "sampling") sampling = i
        }
        next
    }
    !/^\| / || trim($sampling) == "greedy" { next }
    section ~ /the window s/ && trim($2) ~ /^s = [0-9]+$/ { put("Token-Shuffle", trim($2), "above", 0) }
    section ~ /Decode orders, s = / {
        s = section
        sub(/.*Decode orders, s = /, "", s)
        sub(/[^0-9].*/, "", s)
        split(trim($2), order, ":")
        if (order[1] == "zipar") put("ZipAR, s = " s, order[2] * s < 16 ? "W = " order[2] : "", "right", 0)
        if (order[1] == "zipar-adaptive") put("ZipAR adaptive, s = " s, order[2], "above", 0)
    }
    section ~ /Coarse-to-fine/ && trim($2) == "raster" { put("Coarse-to-fine", "", "left", 1) } # stage two is one pass more
    section ~ /Coarse-to-fine/ && trim($2) ~ /^zipar:/ { put("Coarse-to-fine", "W = " substr(trim($2), 7), "right", 1) }
    BEGIN { print "Quality against forward passes: tsar, 128 x 128 pixels, 16 x 16 codes" }
' "$2" | "$1" figure -o "$3"
