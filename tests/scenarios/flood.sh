#!/bin/sh
# A guest that floods its backend with events and requests costs dom0 less through a stub than through xen-pciback.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: timeout 700
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
FLOODS="events reads writes refused"

# spent: seconds of processor time, of dom0 and each other domain that there is; and how long dom0 had to wait for a processor.
spent() {
    xl list | awk 'NR > 1 { print NR == 2 ? "dom0" : $1, $6 }'
    awk '/^cpu / { print "dom0-waited", $9 / 100 }' /proc/stat
}

# measure NAME: looks at the clock when the guest NAME asks for it; leaves FLOOD COUNT WHO SECONDS in /tmp/NAME.
measure() {
    name=$1
    node=/local/domain/$(xl domid "$name")/data/ask
    log=$(stub_log "$name")
    : >"/tmp/$name"
    # Waiting costs dom0 nothing: a line for each change of the node, and one at first.
    mkfifo /tmp/asked
    xenstore-watch "$node" >/tmp/asked &
    watch=$!
    while read -r _ && ! grep -qE 'failed:|panic' "$log"; do
        # shellcheck disable=SC2046 # words
        set -- $(xenstore-read "$node" 2>/dev/null)
        case $1 in
        begin) spent >/tmp/begin ;;
        end)
            spent >/tmp/end
            awk -v flood="$2" -v count="$3" 'NR == FNR { begin[$1] = $2; next }
                { printf "%s %s %s %.2f\n", flood, count, $1, $2 - begin[$1] }' /tmp/begin /tmp/end >>"/tmp/$name"
            ;;
        *) continue ;;
        esac
        xenstore-write "$node" ""
        [ "$1 $2" != "end refused" ] || break
    done </tmp/asked
    kill $watch
    rm /tmp/asked
    within 10 "$name: the floods come to their end" grep -q "INFO  done" "$log"
}
# of NAME FLOOD WHO: seconds; count NAME FLOOD: how often the guest did it.
of() { awk -v flood="$2" -v who="$3" '$1 == flood && $3 == who { print $4 }' "/tmp/$1"; }
count() { awk -v flood="$2" '$1 == flood { print $2; exit }' "/tmp/$1"; }
# tell NAME: its figures.
tell() {
    for flood in nothing $FLOODS; do
        while read -r of count who seconds; do
            [ "$of" != $flood ] || say "$1: $flood, $count times: $seconds s of $who"
        done <"/tmp/$1"
        figure "$flood-count-$1" "$(count "$1" $flood)"
        figure "$flood-dom0-$1" "$(of "$1" $flood dom0)" s of processor time
        figure "$flood-dom0-waited-$1" "$(of "$1" $flood dom0-waited)" s for a processor
    done
}
# new_lines: the lines that are new in dom0's kernel's log, Xen's, the service's and all stubs'.
new_lines() {
    dmesg -c | wc -l
    xl dmesg -c | wc -l
    now=$(cat /var/log/bulkhead/*.log /var/log/xen/guest-*-bulkhead.log 2>/dev/null | wc -l)
    echo $((now - $(cat /tmp/lines 2>/dev/null || echo 0)))
    echo "$now" >/tmp/lines
}

guest_config witness
check "a second guest with a card of its own" bulkhead run /root/witness.cfg --device 0000:00:06.0
check "its network is up" network_up witness
check "its pings" in_guest witness "ping -i 0.5 10.0.2.2 >/tmp/pings 2>&1 & echo \$! >/tmp/ping"

bare_guest bulkhead "mode=flood"
check "bulkhead run" bulkhead run /root/bulkhead.cfg --device $BDF
new_lines >/tmp/new
measure bulkhead
new_lines >/tmp/new.bulkhead
stub=$(bulkhead status --json | jq -r '.stubs[] | select(.guest.name == "bulkhead") | .name')
check "the stub lives" xl domid "$stub"
check "bulkhead destroy" bulkhead destroy bulkhead

check "xen-pciback takes it" xl pci-assignable-add $BDF
bare_guest pciback "mode=flood" "pci = [ \"$BDF\" ]"
check "pciback: xl create" xl create -q /root/pciback.cfg
new_lines >/tmp/new
measure pciback
new_lines >/tmp/new.pciback

in_guest witness "kill -INT \$(cat /tmp/ping); sleep 1; cat /tmp/pings" >/tmp/pings
counts=$(sed -n 's/^\([0-9]*\) .*transmitted, \([0-9]*\) .*received.*/\1 \2/p' /tmp/pings)
equal "the second guest's pings lost of ${counts% *} meanwhile" 0 $((${counts% *} - ${counts#* }))
figure pings-lost $((${counts% *} - ${counts#* })) "of ${counts% *}"

tell bulkhead
tell pciback
for name in bulkhead pciback; do
    # shellcheck disable=SC2046 # three numbers
    set -- $(cat /tmp/new.$name)
    say "$name: log lines: dom0's kernel $1, Xen $2, service and stubs $3"
    lines=$(($1 + $2 + $3))
    figure log-lines-$name $lines of all floods
    [ $name = pciback ] || check "no log was flooded" [ $lines -lt 200 ]
done
# Requests that dom0 has to carry out are slowed down once a burst of them is over, so their number has a bound.
check "writes: no more than a burst and one in 4 ms" [ "$(count bulkhead writes)" -lt 4000 ]
for flood in events reads refused; do
    ours=$(of bulkhead $flood dom0) theirs=$(of pciback $flood dom0)
    check "$flood: dom0's processor time is less than by xen-pciback: $ours s, not $theirs s" \
        awk -v a="$ours" -v b="$theirs" 'BEGIN { exit !(a < b) }'
done
success
