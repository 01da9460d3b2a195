#!/bin/sh
# A guest gets its first device again and again, pcifront loaded before, after and while it comes: it always arrives.
#: device edu,addr=5
#: device edu,addr=6
#: device edu,addr=7
#: device edu,addr=8
#: suite bookworm
#: timeout 900
#: timeout-all 3600
. /rig/scenarios/lib.sh
# Attaches of each kind, and starts of guests with four devices at once. The whole has fifty of either backend.
ROUNDS=${ROUNDS:-$([ "$ALL" ] && echo 17 || echo 2)}
STARTS=${STARTS:-$([ "$ALL" ] && echo 10 || echo 1)}
PCIBACK=${PCIBACK:-$([ "$ALL" ] && echo 25 || echo 0)}
BDF=0000:00:05.0
ALL_FOUR="0000:00:05.0 0000:00:06.0 0000:00:07.0 0000:00:08.0"
LOG=/var/log/bulkhead/serve.log

# arrived COUNT: the guest sees so many devices, within ten seconds.
arrived() { in_guest g1 "for i in \$(seq 50); do [ \"\$(lspci -n | grep -c 1234:11e8)\" = $1 ] && exit 0; usleep 200000; done; exit 1"; }
# How often Linux took a device for one that was reset, of its own accord: from 7.0 on.
resets() { in_guest g1 "dmesg | grep -c 'state reset occurred'"; }
# lost WHAT: notes it, with what a reader needs.
lost() {
    lost=$((lost + 1))
    echo "LOST: $1"
    cat /tmp/attached
    in_guest g1 "dmesg | tail -n 8; xenstore-ls device/pci"
    tail -n 4 "$(stub_log g1-bulkhead)" $LOG
}
# first_attach KIND: the first device comes, pcifront loaded before, when Linux knows the device, or when its nodes are
# there.
first_attach() {
    [ "$1" = before ] && in_guest g1 modprobe xen-pcifront
    bulkhead attach g1 --device $BDF >/tmp/attached 2>&1 &
    attaching=$!
    case $1 in
    after) in_guest g1 "for i in \$(seq 200); do [ -e /sys/bus/xen/devices/pci-0 ] && break; usleep 50000; done; modprobe xen-pcifront" ;;
    while) in_guest g1 "for i in \$(seq 2000); do xenstore-exists device/pci/0/backend-id && break; done; modprobe xen-pcifront" ;;
    esac
    wait $attaching && arrived 1
}

lost=0
guest_config g1 'passthrough = "enabled"'
check "xl create" xl create -q /root/g1.cfg
check "the guest's shell answers" in_guest g1 true
for kind in before after while; do
    slowest=0
    for round in $(seq "$ROUNDS"); do
        check "$kind $round: pcifront is not loaded" in_guest g1 "rmmod xen-pcifront; ! grep -q xen_pcifront /proc/modules"
        read -r began _ </proc/uptime
        first_attach $kind || lost "attach $round, pcifront loaded $kind"
        read -r now _ </proc/uptime
        took=$(awk -v a="$began" -v b="$now" -v s="$slowest" 'BEGIN { d = b - a; print (d > s) ? d : s }')
        slowest=$took
        bulkhead detach g1 >/tmp/check 2>&1 || { cat /tmp/check; failure "$kind $round: detach"; }
    done
    say "pcifront loaded $kind: $ROUNDS attaches, the slowest took $slowest s, all steps included"
done
say "Linux $(in_guest g1 uname -r): it took $(resets) devices for ones that were reset; $(grep -c 'told to begin anew' $LOG) were told to begin anew"
figure first-attaches $((3 * ROUNDS)) attaches
figure first-attaches-lost "$lost" attaches
check "xl destroy" xl destroy g1

# --- all four at once, from the start
for start in $(seq "$STARTS"); do
    # shellcheck disable=SC2086 # a word for each
    bulkhead run /root/g1.cfg --device $ALL_FOUR >/tmp/attached 2>&1 && arrived 4 || lost "start $start"
    echo "start $start: resets $(resets)"
    [ "$start" = "$STARTS" ] || bulkhead destroy g1 >/tmp/check 2>&1 || { cat /tmp/check; failure "start $start: destroy"; }
done
figure first-starts $STARTS "starts with four devices"

# --- a frontend that was given up: Linux's misreading, step by step. Older ones do not look at a device again.
if [ "$(in_guest g1 "uname -r" | cut -d. -f1)" -ge 7 ]; then
    told=$(grep -c 'told to begin anew' $LOG)
    check "the guest lets go" in_guest g1 "echo pci-0 >/sys/bus/xen/drivers/pcifront/unbind; sleep 1; xenstore-write device/pci/0/state 3"
    within 20 "the service has it begin anew" sh -c "[ \$(grep -c 'told to begin anew' $LOG) -gt $told ]"
    check "its devices are back" arrived 4
    # The nodes of a new device under a driver that runs: the whole connection begins anew.
    check "the state of its end is reset" xenstore-write "/local/domain/$(xl domid g1)/device/pci/0/state" 1
    sleep 2
    check "its devices are back again" arrived 4
    within 10 "the connection stands" sh -c "[ \$(xenstore-read /local/domain/$(xl domid g1)/device/pci/0/state) = 4 ]"
fi
check "bulkhead destroy" bulkhead destroy g1

# --- the same by xen-pciback, for comparison: nobody tells the guest there
if [ "$PCIBACK" -gt 0 ]; then
    pciback_lost=0
    check "xl create" xl create -q /root/g1.cfg
    check "pciback takes the device" xl pci-assignable-add $BDF
    for kind in before after; do
        for round in $(seq "$PCIBACK"); do
            in_guest g1 "rmmod xen-pcifront"
            [ $kind = before ] && in_guest g1 "modprobe xen-pcifront"
            check "pciback $kind $round: attach" xl pci-attach g1 $BDF
            [ $kind = after ] && in_guest g1 "sleep 1; modprobe xen-pcifront"
            arrived 1 || {
                echo "LOST by xen-pciback: $kind $round"
                pciback_lost=$((pciback_lost + 1))
                in_guest g1 "dmesg | tail -n 5; xenstore-ls device/pci"
                xl destroy g1
                check "xl create" xl create -q /root/g1.cfg
                continue
            }
            xl pci-detach g1 $BDF
        done
    done
    figure first-attaches-pciback $((2 * PCIBACK)) attaches
    figure first-attaches-pciback-lost $pciback_lost attaches
    xl destroy g1
fi
equal "lost" 0 "$lost"
equal "complaints in dom0" "" "$(complaints)"
success
