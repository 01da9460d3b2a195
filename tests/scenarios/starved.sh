#!/bin/sh
# Beside a domain that burns the processor, dom0 and stubs wait long for their turns: no stub is taken for hung, and the guest is served as through xen-pciback.
#: device e1000e,netdev=n0,addr=5
#: suite bookworm
#: timeout 900
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
ROUNDS=${ROUNDS:-$([ "$ALL" ] && echo 25 || echo 12)}
# What the burning domain may have of the processor for each share of dom0's and of a stub's.
BURN=${BURN:-2048} DOM0=${DOM0:-128} STUB=${STUB:-64} GUEST=${GUEST:-1024}

weigh() { xl sched-credit2 -d "$1" -w "$2" || error "xl sched-credit2 -d $1 -w $2"; }
starve() {
    for stub in $(xl list | awk '$1 ~ /-bulkhead$/ { print $1 }'); do weigh "$stub" "$STUB"; done
    weigh "$1" "$GUEST"
    weigh Domain-0 "$DOM0"
    weigh burn "$BURN"
}
relieve() {
    weigh burn 8
    weigh Domain-0 256
}

# What a guest does while all starve: accesses, one after another, then its driver lets go of the card and takes it up.
# The variables are the guest's.
# shellcheck disable=SC2016
WORK='cd /tmp; (round=0
    while [ $((round += 1)) -le '$ROUNDS' ]; do
        value=$(printf %02x $((round * 4 % 64)))
        read -r begin _ </proc/uptime
        ids=$(setpci -s 00:00.0 VENDOR_ID)
        read -r second _ </proc/uptime
        setpci -s 00:00.0 CACHE_LINE_SIZE=$value
        read -r third _ </proc/uptime
        back=$(setpci -s 00:00.0 CACHE_LINE_SIZE)
        read -r end _ </proc/uptime
        echo $begin $second $third $end $ids $value $back >>rounds
    done
    read -r begin _ </proc/uptime
    echo 0000:00:00.0 >/sys/bus/pci/drivers/e1000e/unbind
    echo 0000:00:00.0 >/sys/bus/pci/drivers/e1000e/bind
    read -r end _ </proc/uptime
    echo $begin $end >bound) >trouble 2>&1 & echo started'

# work NAME: leaves /tmp/NAME.rounds, and /tmp/NAME.bound.
work() {
    check "$1: e1000e comes up" network_up "$1"
    in_guest "$1" "$WORK"
    starve "$1"
    read -r began _ </proc/uptime
    sleep 10
    within 200 "$1: it does its work" in_guest "$1" "test -e /tmp/bound"
    read -r now _ </proc/uptime
    relieve
    say "$1: worked $(awk -v a="$began" -v b="$now" 'BEGIN { print b - a }') s"
    in_guest "$1" "cat /tmp/rounds" >"/tmp/$1.rounds"
    in_guest "$1" "cat /tmp/bound" >"/tmp/$1.bound"
    in_guest "$1" "cat /tmp/trouble; dmesg" >"/rig/out/$1.dmesg"
    equal "$1: rounds" "$ROUNDS" "$(wc -l <"/tmp/$1.rounds")"
    # An access that pcifront gives up takes its two seconds.
    wrong=$(awk '$4 - $1 < 2 && ($5 != 8086 || $6 != $7)' "/tmp/$1.rounds")
    equal "$1: wrong answers, but for accesses that were given up" "" "$wrong"
    slowest=$(awk '{ for (i = 1; i < 4; i++) if ($(i + 1) - $i > max) max = $(i + 1) - $i } END { print int(max * 1000) }' "/tmp/$1.rounds")
    figure "starved-slowest-$1" "$slowest" "ms, of $((ROUNDS * 3)) accesses, process included"
    figure "starved-bind-$1" "$(awk '{ print int(($2 - $1) * 1000) }' "/tmp/$1.bound")" "ms to let go of the card and take it up"
    grep -c 'not responding' "/rig/out/$1.dmesg" >"/tmp/$1.given-up"
    figure "starved-given-up-$1" "$(cat "/tmp/$1.given-up")" "accesses given up"
    # A card that was waited for too long comes up once the guest runs again.
    within 60 "$1: e1000e is there" network_up "$1"
}

guest_config burn
check "a guest that burns all it gets" xl create -q /root/burn.cfg
weigh burn 8
check "it burns" in_guest burn '(while :; do :; done) & echo started'

guest_config bulkhead
check "bulkhead run" bulkhead run /root/bulkhead.cfg --device $BDF
stub=bulkhead-bulkhead
log=$(stub_log $stub)
unhurt() { equal "$1: restarts, or ends, of the stub" "" "$(grep -E 'restart|fault' "$log"; grep -E 'is back after|watchdog' /var/log/bulkhead/serve.log)"; }
work bulkhead
unhurt "starved"
equal "MSI-X vectors after the rebind" 3 "$(in_guest bulkhead "grep -c pcifront-msi-x /proc/interrupts")"

# Not scheduled at all, in the middle of work: for less than the guest's patience, then for more.
accesses bulkhead
for pause in 1 1 1 1 1 1 5 5; do
    xl pause $stub && sleep $pause && xl unpause $stub || error "xl pause"
    usleep 500000
done
accesses_end bulkhead
unhurt "paused"
equal "restarts by status" 0 "$(bulkhead status --json | jq '.stubs[0].served.counters.restarts')"
check "bulkhead destroy" bulkhead destroy bulkhead

check "xen-pciback takes the card" xl pci-assignable-add $BDF
guest_config pciback "pci = [ \"$BDF\" ]"
check "pciback: xl create" xl create -q /root/pciback.cfg
work pciback
check "no more accesses given up than through xen-pciback" [ "$(cat /tmp/bulkhead.given-up)" -le "$(cat /tmp/pciback.given-up)" ]
success
