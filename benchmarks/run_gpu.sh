#!/usr/bin/env bash
# On a machine with a GPU: the tests marked gpu, compute-sanitizer on a small suite, then the benchmarks, the most valuable
# first. On a machine without one: the CPU half of the benchmarks. Needs no network and installs nothing.
#
#   benchmarks/run_gpu.sh [MINUTES]        the whole run, 8 minutes unless given
#
# OUT     folder for the results: checks.log, bench.log, measurements.csv and the plots (benchmarks/results/latest)
# WHEELS  folder of peers' wheels, unpacked into a temporary folder for this run
# PYTHON  interpreter (python3)
# GPUOPT_COMMIT  what the rows name as their commit, for a copy of the tree without its .git
# What a machine lacks is named in the summary and is no failure; a failing test, a sanitizer finding or a benchmark that
# breaks is, after everything else has run.
set -uo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
OUT="${OUT:-$root/benchmarks/results/latest}"
PYTHON="${PYTHON:-python3}"
minutes="${1:-${MINUTES:-8}}"
total="$(awk -v m="$minutes" 'BEGIN { print int(60 * m) }')"
mkdir -p "$OUT" && OUT="$(cd "$OUT" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$root" || exit 1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
summary=() failed=0

note() { summary+=("$1"); echo "$1"; }
left() { echo $((total - SECONDS)); }
share() { local part=$(($(left) * $1 / 100)); echo $((part > 5 ? part : 5)); }
# limited SECONDS LOG COMMAND...: append its output to the log, and show the end of it
limited() {
    local seconds="$1" log="$2" status
    shift 2
    echo "\$ $*" >>"$log"
    timeout --kill-after=10 "$seconds" "$@" >>"$log" 2>&1
    status=$?
    tail -n 4 "$log"
    return $status
}
outcome() { # NAME STATUS
    case "$2" in
        0) note "done: $1" ;;
        124 | 137) note "cut short: $1 (time)" ;;
        *) note "FAILED: $1 (exit code $2)"; failed=1 ;;
    esac
}

if [ -n "${WHEELS:-}" ]; then
    for wheel in "$WHEELS"/*.whl; do
        [ -e "$wheel" ] || { note "skipped: no wheels in WHEELS"; break; }
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/site" "$wheel" \
            >>"$OUT/bench.log" 2>&1 || note "skipped: $(basename "$wheel") does not install here"
    done
    PYTHONPATH="$PYTHONPATH:$work/site"
fi

"$PYTHON" -m gpuopt.cli info | tee -a "$OUT/checks.log"
if "$PYTHON" -c 'import sys; from gpuopt.bench.machine import gpu_usable; sys.exit(not gpu_usable())' 2>>"$OUT/checks.log"; then
    gpu=yes
    nvidia-smi >>"$OUT/checks.log" 2>&1
else
    gpu=""
    note "skipped: tests marked gpu, no GPU can be used here"
    note "skipped: compute-sanitizer, no GPU can be used here"
    note "skipped: the GPU half of the benchmarks, no GPU can be used here"
fi

if [ -n "$gpu" ]; then
    if "$PYTHON" -c 'import pytest' 2>/dev/null; then
        limited "$(share 35)" "$OUT/checks.log" "$PYTHON" -m pytest -m gpu --require-gpu -q -p no:cacheprovider
        outcome "tests marked gpu" $?
    else
        note "skipped: tests marked gpu, pytest is not installed"
    fi
    sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/*/compute-sanitizer 2>/dev/null | head -n 1)"
    for tool in memcheck racecheck; do
        [ -n "$sanitizer" ] || { note "skipped: compute-sanitizer $tool, the tool is not installed"; continue; }
        limited "$(share 15)" "$OUT/checks.log" "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$PYTHON" benchmarks/sanitize_suite.py
        status=$?
        if tail -n 200 "$OUT/checks.log" | grep -q -e 'Device not supported' -e 'LibraryNotLoaded'; then
            note "skipped: compute-sanitizer $tool, it refuses this machine"
        else
            outcome "compute-sanitizer $tool" "$status"
        fi
    done
fi

bench() { # DEVICE SECONDS: the suites stop by themselves; the limit is for a case that hangs
    limited $(($2 + 25)) "$OUT/bench.log" "$PYTHON" -m gpuopt.bench --device "$1" --out "$OUT" \
        --minutes "$(awk -v s="$2" 'BEGIN { print s / 60 }')" ${BENCH_OPTIONS:-}
    outcome "benchmarks on $1" $?
}
[ -n "$gpu" ] && bench cuda "$(share 75)"
bench cpu "$(share 85)"
if [ -s "$OUT/measurements.csv" ]; then
    limited 60 "$OUT/bench.log" "$PYTHON" -m gpuopt.bench --plot --out "$OUT"
    outcome "plots" $?
fi

grep -h -o -e '[A-Za-z0-9. -]*: skipped, .*' "$OUT/bench.log" | sort -u | sed 's/^ */peer /'
echo "--- summary, $SECONDS s ---"
printf '%s\n' "${summary[@]}"
echo "results in $OUT"
exit $failed
