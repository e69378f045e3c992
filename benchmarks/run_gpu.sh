#!/usr/bin/env bash
# On a machine with a GPU: a minute that says what is broken, the tests marked gpu, compute-sanitizer on a small suite, then the
# benchmarks, the most valuable first. On a machine without one: the CPU half of the benchmarks. Needs no network and installs
# nothing. What is cut short has said before what failed so far.
#
#   benchmarks/run_gpu.sh [MINUTES]        the whole run, 8 minutes unless given
#
# OUT     folder for the results: checks.log, bench.log, measurements.csv and the plots (benchmarks/results/latest)
# WHEELS  folder of peers' wheels, unpacked into a temporary folder for this run
# CUBINS  folder of kernels compiled elsewhere (a GPUOPT_CACHE_DIR of the same NVRTC), copied for this run
# PYTHON  interpreter (python3)
# BENCH_OPTIONS, SANITIZE_OPTIONS  more options of the benchmarks and of sanitize_suite.py, for smaller ones
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
    timeout --signal=INT --kill-after=20 "$seconds" "$@" >>"$log" 2>&1 # INT: pytest tells what failed so far
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

gpu_tests() { # NAME PERCENT FILES...
    local name="$1" part
    part="$(share "$2")"
    shift 2
    limited "$part" "$OUT/checks.log" "$PYTHON" -m pytest -m gpu --require-gpu -q -p no:cacheprovider \
        --continue-on-collection-errors "${parallel[@]}" "$@"
    outcome "$name" $?
}

if [ -n "${WHEELS:-}" ]; then
    for wheel in "$WHEELS"/*.whl; do
        [ -e "$wheel" ] || { note "skipped: no wheels in WHEELS"; break; }
        "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile --upgrade --target "$work/site" "$wheel" \
            >>"$OUT/bench.log" 2>&1 || note "skipped: $(basename "$wheel") does not install here"
    done
    PYTHONPATH="$PYTHONPATH:$work/site"
fi

if [ -n "${CUBINS:-}" ]; then
    install -d -m 700 "$work/cubins" && cp -r "$CUBINS"/. "$work/cubins" && chmod -R go= "$work/cubins"
    export GPUOPT_CACHE_DIR="$work/cubins"
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
    limited 60 "$OUT/checks.log" "$PYTHON" benchmarks/smoke.py
    outcome "smoke test" $?
    if "$PYTHON" -c 'import pytest' 2>/dev/null; then
        parallel=()
        if "$PYTHON" -c 'import xdist' 2>/dev/null; then
            cores="$(nproc)"
            parallel=(-n "$((cores < 12 ? cores : 12))" --dist worksteal)
        fi
        marked="$(grep -l 'mark\.gpu' tests/test_*.py)"
        # shellcheck disable=SC2046,SC2086  # file names of ours
        {
            gpu_tests "tests marked gpu" 25 $(grep -L 'torch' $marked)
            if "$PYTHON" -c 'import sys, torch; sys.exit(torch.version.cuda is None)' 2>>"$OUT/checks.log"; then
                gpu_tests "tests marked gpu that need torch" 25 $(grep -l 'torch' $marked)
            else
                note "skipped: tests marked gpu that need torch, torch is not installed with CUDA"
            fi
        }
    else
        note "skipped: tests marked gpu, pytest is not installed"
    fi
    sanitizer="$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer /opt/nvidia/*/*/compute-sanitizer 2>/dev/null | head -n 1)"
    for tool in memcheck racecheck; do
        [ -n "$sanitizer" ] || { note "skipped: compute-sanitizer $tool, the tool is not installed"; continue; }
        limited "$(share 15)" "$OUT/checks.log" "$sanitizer" --tool "$tool" --error-exitcode 9 \
            "$PYTHON" benchmarks/sanitize_suite.py ${SANITIZE_OPTIONS:-}
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
    limited 30 "$OUT/bench.log" "$PYTHON" -m gpuopt.bench --plot --out "$OUT"
    outcome "plots" $?
fi

grep -h -o -e '[A-Za-z0-9. -]*: skipped, .*' "$OUT/bench.log" | sort -u | sed 's/^ */peer /'
echo "--- summary, $SECONDS s ---"
printf '%s\n' "${summary[@]}"
echo "results in $OUT"
exit $failed
