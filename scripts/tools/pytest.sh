# How scripts/test and scripts/check run pytest.

# run_pytest PYTHON ARGUMENT...: run tests. With `retry=yes`, as in CI, those that failed run a second time, one after
# the other: tests start processes and break connections, and the load of the machine at that moment may be the reason.
# More than MAX_RETRIED are no accident. Those that pass the second time are named in the end, and are no failure.
MAX_RETRIED=5
run_pytest() {
    local python=$1 code=0 failed
    shift
    "$python" -m pytest -q ${retry:+--cache-clear} "$@" || code=$?
    if [ "$code" -ne 1 ] || [ -z "${retry:-}" ]; then return "$code"; fi
    failed=$("$python" -c 'import json; print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")') || return "$code"
    if [ -z "$failed" ] || [ "$(wc -l <<< "$failed")" -gt "$MAX_RETRIED" ]; then return "$code"; fi
    echo "tests: a second run, of what failed"
    "$python" -m pytest -q "$@" -n 0 --dist no --last-failed --last-failed-no-failures none ${second[@]+"${second[@]}"} || return
    printf 'tests: passed only the second time:\n%s\n' "$failed"
}
