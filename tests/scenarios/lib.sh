# What scenarios share: verdicts, checks, and guests.
# shellcheck shell=sh

ended=
finish() { # CODE VERDICT
    ended=1
    echo "VERDICT $2"
    exit "$1"
}
success() { finish 0 Success; }
skip() { finish 3 "Skip: $*"; }
error() { finish 4 "Error: $*"; }
failure() {
    explain
    finish 5 "Failure: $*"
}
trap '[ -n "$ended" ] || { echo "VERDICT Error: the script ended early"; exit 4; }' EXIT

# What a reader of a failed run wants to see.
explain() {
    echo "--- bulkhead status"
    bulkhead status 2>&1 | tail -n 30
    for log in /var/log/xen/guest-*.log /var/log/bulkhead/*.log; do
        [ -e "$log" ] || continue
        echo "--- the last lines of $log"
        tail -n 15 "$log"
    done
}

# say TEXT: a line of the report.
say() { echo "  $*"; }

# check WHAT COMMAND...: COMMAND succeeds, or the scenario fails.
check() {
    what=$1
    shift
    if "$@" >/tmp/check 2>&1; then
        echo "ok: $what"
    else
        code=$?
        cat /tmp/check
        failure "$what (exit code $code of: $*)"
    fi
}

# refused WHAT PATTERN COMMAND...: COMMAND fails and says why in words that match PATTERN.
refused() {
    what=$1
    pattern=$2
    shift 2
    if "$@" >/tmp/check 2>&1; then
        cat /tmp/check
        failure "$what: not refused: $*"
    fi
    grep -qiE -- "$pattern" /tmp/check || { cat /tmp/check; failure "$what: no word of '$pattern' in the refusal of: $*"; }
    echo "ok: $what: $(grep -iE -m 1 -- "$pattern" /tmp/check)"
}

# equal WHAT EXPECTED FOUND
equal() {
    [ "$2" = "$3" ] || failure "$1: expected '$2', found '$3'"
    echo "ok: $1: $3"
}

# within SECONDS WHAT COMMAND...: COMMAND succeeds before SECONDS have passed.
within() {
    left=$(($1 * 5))
    what=$2
    shift 2
    until "$@" >/tmp/check 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { cat /tmp/check; failure "$what: not in time: $*"; }
        usleep 200000
    done
    echo "ok: $what"
}

# guest_config NAME [LINE]...: writes NAME.cfg, a stock Linux guest without devices.
guest_config() {
    name=$1
    shift
    cat >"/root/$name.cfg" <<END
name = "$name"
type = "pv"
kernel = "/rig/guest/vmlinux"
ramdisk = "${GUEST_INITRD:-/rig/guest/initrd}"
extra = "console=hvc0"
memory = 256
vcpus = 1
e820_host = 1
END
    for line; do
        echo "$line" >>"/root/$name.cfg"
    done
}

# in_guest NAME COMMAND...: runs it there, 60 s at most.
in_guest() {
    domain=$1
    shift
    guest-run "$domain" 60 "$@"
}

# network_up NAME [DRIVER]: the guest's first card gets an address on QEMU's user network.
network_up() {
    in_guest "$1" "modprobe ${2:-e1000e}; ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up;
        for i in \$(seq 50); do [ \"\$(cat /sys/class/net/eth0/carrier 2>/dev/null)\" = 1 ] && exit 0; usleep 200000; done; exit 1"
}

# pings_lost NAME COUNT [SECONDS-BETWEEN]: prints how many pings of the gateway went unanswered.
pings_lost() {
    in_guest "$1" "ping -c $2 -i ${3:-0.2} -W 2 10.0.2.2" >/tmp/pings 2>&1
    received=$(sed -n 's/.* transmitted, \([0-9]*\) .*received.*/\1/p' /tmp/pings)
    echo $(($2 - ${received:-0}))
}

stub_log() { echo "/var/log/xen/guest-$1.log"; }
