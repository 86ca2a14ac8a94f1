#!/usr/bin/env bash
# Runs tests with the kernels under a sanitizer: AddressSanitizer detects every access outside of an array or allocation,
# ThreadSanitizer every pair of accesses that no barrier orders. The test binary itself is not instrumented.
#   tests/vgpu/sanitize.sh address|thread [test filters and options]
# The virtual GPU's own wrong kernels (tests/vgpu.rs, mod faults) are left out. Fails if a test fails or the sanitizer reports
# anything.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

sanitizer=${1:?address or thread}
shift
case $sanitizer in
address) runtime=libasan.so ;;
thread) runtime=libtsan.so ;;
*) echo "$0: $sanitizer: address or thread" >&2; exit 2 ;;
esac

# Prints the field of cargo's message that has both of the words.
message() { sed -n "/$1/s/.*\"$2\":\"\([^\"]*\)\".*/\1/p"; }

directory=$(VGPU_SANITIZE=$sanitizer cargo build --release -p vgpu --target-dir "target/$sanitizer" --message-format json |
    grep build-script-executed | message 'vgpu' out_dir)
tests=$(cargo test --release --test tests --no-run --message-format json | message '"name":"tests"' executable)

reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT
options="log_path=$reports/report:exitcode=1"
# Leaks are the host's; only the kernels are instrumented, so reports about other code are no findings.
export ASAN_OPTIONS=$options:detect_leaks=0:detect_stack_use_after_return=0
export TSAN_OPTIONS=$options:ignore_noninstrumented_modules=1:report_signal_unsafe=0
status=0
# Launches take turns under a sanitizer, so that a second thread of tests would gain nothing. With one, ThreadSanitizer
# reported a race across a barrier in one run of six; it has 256 slots, and there are more fibers.
VGPU_DIR=$directory LD_PRELOAD=$("${CXX:-c++}" -print-file-name=$runtime) setarch -R "$tests" --test-threads=1 --skip faults:: "$@" || status=$?
# A remark of AddressSanitizer on the fibers, when a test's kernel fails on purpose, is no finding.
if grep -qs "\(Address\|Thread\)Sanitizer: " "$reports"/*; then
    cat "$reports"/* >&2
    echo "$0: the sanitizer has something to report" >&2
    exit 1
fi
exit "$status"
