#!/bin/sh
# The same requests to xen-pciback and to Bulkhead, by a guest that sends what Linux cannot: each answer compared.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: device nvme,serial=1,drive=d0,addr=7
#: timeout 900
. /rig/scenarios/lib.sh
# To repeat a run, put the seed that it printed here.
SEED=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
COUNT=12000
DEVICES="0000:00:05.0 0000:00:06.0 0000:00:07.0"
say "seed $SEED, $COUNT requests at random"

# bdf DEVFN: the device that stands there on the guest's bus.
bdf() {
    # shellcheck disable=SC2086 # one word per device
    set -- $(($1 / 8 + 1)) $DEVICES
    shift "$1"
    echo "$1"
}

# comply NAME: does what the guest NAME asks dom0 for, if it asks.
comply() {
    node=/local/domain/$(xl domid "$1")/data/ask
    request=$(xenstore-read "$node" 2>/dev/null)
    case $request in
    "") return ;;
    decode-off*) setpci -s "$(bdf "${request#* }")" COMMAND=0:2 ;;
    decode-on*) setpci -s "$(bdf "${request#* }")" COMMAND=2:2 ;;
    *) error "$1 asks for $request" ;;
    esac
    xenstore-write "$node" ""
}

# record NAME: waits until the guest NAME has recorded its answers; leaves them, and what is left in each device.
record() {
    log=$(stub_log "$1")
    mkdir -p "/rig/out/$1"
    until grep -qE 'INFO  done|failed:|panic' "$log"; do
        [ "$(cut -d. -f1 /proc/uptime)" -lt 380 ] || failure "$1: no end"
        comply "$1"
        usleep 300000
    done
    if ! grep -q "INFO  done" "$log"; then
        cat "$log"
        failure "$1: it did not come to its end"
    fi
    say "$1:$(tr -d '\r' <"$log" | sed -n 's/.*INFO \(.*requests in.*\)/\1/p')"
    node=/local/domain/$(xl domid "$1")/data/ops
    paths='' piece=0
    while [ $piece -lt "$(xenstore-read "$node/pieces")" ]; do
        paths="$paths $node/$piece"
        piece=$((piece + 1))
    done
    # shellcheck disable=SC2086 # one word per path
    xenstore-read $paths >"/rig/out/$1/answers"
    for device in $DEVICES; do
        lspci -xxx -s "$device" | grep -E '^[0-9a-f]0:' >"/rig/out/$1/left-$device"
    done
}

bare_guest bulkhead "mode=ops seed=$SEED count=$COUNT"
# shellcheck disable=SC2046,SC2086 # one word per device
check "bulkhead run" bulkhead run /root/bulkhead.cfg $(printf -- '--device %s ' $DEVICES)
record bulkhead
bulkhead status
bulkhead status --json >/rig/out/status.json
check "the stub lives" jq -e '.stubs | length == 1' /rig/out/status.json
check "bulkhead destroy" bulkhead destroy bulkhead

for device in $DEVICES; do
    # Bulkhead gives a device back with INTx disabled, so that it cannot hold its line down: here both begin alike.
    setpci -s "$device" COMMAND=0:400
    check "xen-pciback takes $device" xl pci-assignable-add "$device"
done
# shellcheck disable=SC2086 # one word per device
bare_guest pciback "mode=ops seed=$SEED count=$COUNT" "pci = [ $(printf '"%s", ' $DEVICES) ]"
dmesg -c >/dev/null
check "pciback: xl create" xl create -q /root/pciback.cfg
record pciback
say "dom0's kernel said $(dmesg | wc -l) lines of xen-pciback's guest"
check "pciback: xl destroy" xl destroy pciback

ops-compare compare /rig/out/pciback/answers /rig/out/bulkhead/answers ||
    failure "answers that docs/parity.md does not list; seed $SEED"
for device in $DEVICES; do
    check "$device: config space is left alike" diff "/rig/out/pciback/left-$device" "/rig/out/bulkhead/left-$device"
done
success
