#!/bin/sh
# How long a request takes through xen-pciback and through Bulkhead in one boot: calm, and with every processor busy.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: all
#: cpus 2
#: timeout 900
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
COUNT=${COUNT:-200}
# As in the scenario instructions.
NATIVE='tsc_mode = "native"'

# One for each processor. They run in the second round of each guest alone.
for burner in burner1 burner2; do
    bare_guest $burner "mode=burn"
    check "$burner: xl create, paused" xl create -q -p /root/$burner.cfg
done
busy() {
    for burner in burner1 burner2; do
        check "$burner: xl $1" xl "$1" $burner
    done
}

# told NAME: the guest measures calm, and then busy; leaves REQUEST P50-CALM P50-BUSY in /tmp/NAME, in nanoseconds.
told() {
    within 60 "$1: it has measured, calm" asks "$1" round
    calm=$(measured "$1" | wc -l)
    busy unpause
    answer_guest "$1"
    within 120 "$1: it measures, busy" is_done "$1"
    busy pause
    check "$1: it has come to its end" grep -q 'INFO  done' "$(stub_log "$1")"
    measured "$1" | awk -v calm="$calm" 'NR <= calm { p50[$1] = $3; next } { print $1, p50[$1], $3 }' >"/tmp/$1"
    while read -r what calm busy; do
        figure "$what-calm-$1" "$calm" ns
        figure "$what-busy-$1" "$busy" ns
    done <"/tmp/$1"
}

bare_guest bulkhead "mode=measure count=$COUNT rounds=2" "$NATIVE"
check "bulkhead run" bulkhead run /root/bulkhead.cfg --device $BDF
told bulkhead
check "bulkhead destroy" bulkhead destroy bulkhead

check "xen-pciback takes the card" xl pci-assignable-add $BDF
bare_guest pciback "mode=measure count=$COUNT rounds=2" "$NATIVE" "pci = [ \"$BDF\" ]"
check "pciback: xl create" xl create -q /root/pciback.cfg
told pciback
success
