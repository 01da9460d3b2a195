#!/bin/sh
# A stub that was taken over does its worst to dom0's service; a second guest, its stub and its card see nothing.
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: device edu,addr=7
#: device edu,addr=8
#: suite bookworm
#: all
#: timeout 900
#: timeout-all 3000
. /rig/scenarios/lib.sh
# What it does is in tests/guest/src/hostile_stub.rs. To repeat a run, give the seed that it printed: `--set SEED=N`.
# `--all` does 34,000 on each of the three suites, each from a seed of its own: more than 100,000 together. All of them in
# one boot: `--set COUNT=100000 --timeout 5400`.
SEED=${SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
[ -z "$ALL" ] || COUNT=${COUNT:-34000}
COUNT=${COUNT:-6000}
# So many at most between two looks at what must hold.
PORTION=2000
ATTACKS=${ATTACKS:-$(seq 0 23)}
DEATHS=${DEATHS:-$(seq 0 14)}
HOSTILE=05 WITNESS=06 SPARE=0000:00:07.0 NEIGHBOUR=0000:00:08.0
say "seed $SEED, $COUNT actions at random"

lines() { cat "$@" 2>/dev/null | wc -l; }
now() { awk '{ print int($1 * 1000) }' /proc/uptime; }
# timed NAME COMMAND...: it succeeds; the time that it took, in ms, goes to /tmp/took.NAME.
timed() {
    kind=$1
    shift
    began=$(now)
    "$@" >"/tmp/timed.$kind" 2>&1 || { code=$?; cat "/tmp/timed.$kind"; failure "$kind: exit code $code of: $*"; }
    echo $(($(now) - began)) >>"/tmp/took.$kind"
}
# ask WHEN: dom0 is asked for the status, and for what does not ask the service.
ask() {
    timed status bulkhead status
    timed listing listing
    status=$(tail -n 1 /tmp/took.status) listing=$(tail -n 1 /tmp/took.listing)
    [ "$status" -le 1000 ] || say "$1: status took $status ms, the listing after it $listing ms"
}
longest() { sort -n "/tmp/took.$1" | tail -n 1; }
# A list of domains and of dom0's nodes: it does not ask the service, so it tells how slow the machine itself is.
listing() { xl list && xenstore-ls -f /local/domain/0; }
# in_time NAME: what took so long under attack took no more than a second, or than three times as long as without, or than
# twice what the listing became slower by.
in_time() {
    say "$1: at most $(longest "$1-alone") ms alone, at most $(longest "$1") ms under attack, of $(lines "/tmp/took.$1") times"
    figure "$1-alone" "$(longest "$1-alone")" ms
    figure "$1-under-attack" "$(longest "$1")" ms
    percent=$(($(longest listing) * 200 / $(longest listing-alone)))
    [ $percent -gt 300 ] || percent=300
    limit=$(($(longest "$1-alone") * percent / 100))
    [ $limit -gt 1000 ] || limit=1000
    check "$1: in time under attack, $limit ms" [ "$(longest "$1")" -le $limit ]
}
# addresses BDF: where a function answers and sends its messages, as nobody but dom0 may change it.
addresses() {
    for register in BASE_ADDRESS_0 BASE_ADDRESS_1 BASE_ADDRESS_2 BASE_ADDRESS_3 BASE_ADDRESS_4 BASE_ADDRESS_5 ROM_ADDRESS; do
        echo "$1 $register $(setpci -s "$1" $register 2>/dev/null)"
    done
    echo "$1 decode $((0x$(setpci -s "$1" COMMAND) & 3))"
}
# others: the same of all functions that are not the hostile stub's, and that do not change hands meanwhile.
others() {
    for function in $(lspci -n | cut -d' ' -f1 | grep -vE "^00:(0[78]|$HOSTILE)"); do addresses "$function"; done
}

guest_config witness
check "a second guest with a card of its own" bulkhead run /root/witness.cfg --device 0000:00:$WITNESS.0
check "its network is up" network_up witness
bare_guest neighbour "mode=idle"
check "a third guest" bulkhead run /root/neighbour.cfg --device $NEIGHBOUR
timed attach-alone bulkhead attach witness --device $SPARE
timed detach-alone bulkhead detach $SPARE
for _ in 1 2 3 4 5; do
    timed status-alone bulkhead status
    timed listing-alone listing
done
timed destroy-alone bulkhead destroy neighbour
nodes() { xenstore-ls -f / | sed -nE '/bulkhead|\/pci\//s/ = .*//p' | sort; }
inventory >/tmp/inventory.before
nodes >/tmp/nodes.before

bare_guest hostile "mode=idle"
check "a fourth guest, whose stub will be taken over" bulkhead run /root/hostile.cfg --device 0000:00:$HOSTILE.0 \
    --kernel /rig/guest/hostile-stub
check "the third guest again" bulkhead run /root/neighbour.cfg --device $NEIGHBOUR
stub=hostile-bulkhead
number=$(xl domid $stub)
home=/local/domain/$number
log=$(stub_log $stub)
pid=$(service_pid)
witness_stub=$(xl domid witness-bulkhead)
others >/tmp/others.before
addresses 00:$HOSTILE.0 >/tmp/addresses.before
dmesg -c >/dev/null
xl dmesg -c >/dev/null
service=$(lines /var/log/bulkhead/*.log)
check "the second guest's pings" in_guest witness "ping -i 0.2 10.0.2.2 >/tmp/pings 2>&1 & echo \$! >/tmp/ping"
accesses witness
start=$(now)

lives() { grep -c 'a new life of the hostile stub' "$log"; }
# take_over: the stub that is there now is a genuine one; it is made the hostile one.
take_over() {
    left=600
    until [ "$(xenstore-read "$home/data/done" 2>/dev/null)" = ready ]; do
        left=$((left - 1))
        [ $left -gt 0 ] || failure "the stub cannot be taken over"
        # To be asked to shut down is the signal.
        [ "$(xenstore-read "$home/device/bulkhead/0/state" 2>/dev/null)" != 4 ] ||
            xenstore-write "$home/control/shutdown" halt
        usleep 100000
    done
}
# order WORDS: the stub carries it out, while dom0 is asked for the status again and again, with $PAUSE between; fails if
# the stub dies over it.
PAUSE=0
order() {
    born=$(lives)
    deadline=$(($(now) + 240000))
    xenstore-write "$home/data/done" "" "$home/data/order" "$*"
    until [ "$(xenstore-read "$home/data/done" 2>/dev/null)" = "$*" ]; do
        [ "$(lives)" = "$born" ] || return 1
        [ "$(now)" -lt $deadline ] || failure "the hostile stub does not come to an end: $*"
        ask "$*"
        sleep $PAUSE
    done
}
# die NUMBER: it ends in this way; there is a new one when this returns.
die() {
    born=$(lives)
    deadline=$(($(now) + 120000))
    destroyed=
    xenstore-write "$home/data/done" "" "$home/data/order" "death $1"
    while [ "$(lives)" = "$born" ]; do
        [ "$(now)" -lt $deadline ] || failure "no new stub after death $1"
        ask "death $1"
        # One that was shut down on purpose stays off.
        if [ -z "$destroyed" ] && tr -d '\r' <"$log" | tail -n 3 | grep -qE 'death: (poweroff|reboot)$'; then
            sleep 1
            xl destroy $stub >/dev/null 2>&1
            destroyed=1
        fi
    done
}
# sound: what must hold at every moment.
sound() {
    equal "$1: the service is the process that it was" "$pid" "$(service_pid)"
    addresses 00:$HOSTILE.0 >/tmp/addresses
    equal "$1: where its device answers" "" "$(diff /tmp/addresses.before /tmp/addresses)"
    others >/tmp/others
    equal "$1: where all others answer" "" "$(diff /tmp/others.before /tmp/others)"
}

take_over
for attack in $ATTACKS; do
    order attack "$attack" "$SEED" || take_over
    told=$(tr -d '\r' <"$log" | grep -E 'attack: |did: |dies: |failed: ' | sed 's/^.*\(INFO\|WARN\|ERROR\)  *//' | tail -n 2 | tr '\n' ' ')
    sound "$told"
done

# While all of it comes at once, commands for others are carried out.
(
    sleep 1
    timed attach bulkhead attach witness --device $SPARE
    timed detach bulkhead detach $SPARE
    timed destroy bulkhead destroy neighbour
    echo 'done' >/tmp/commands
) >/tmp/commands.log 2>&1 &
while [ ! -e /tmp/commands ] && ! grep -q 'VERDICT' /tmp/commands.log; do order flood 10 || take_over; done
grep VERDICT /tmp/commands.log && failure "a command under attack: $(cat /tmp/commands.log)"
sound "a flood of all at once"

# The processor is the stub's for most of the time.
PAUSE=3
done=0 round=0
# at_random: the actions that were done at random so far, by what the stub has told of each life.
at_random() { tr -d '\r' <"$log" | sed -n 's/.*\(did\|dies\): at random: .*all=\([0-9]*\).*/\2/p' | awk '{ sum += $1 } END { print sum + 0 }'; }
while [ "$(at_random)" -lt "$COUNT" ]; do
    before=$(at_random)
    some=$((COUNT - before))
    [ $some -le $PORTION ] || some=$PORTION
    order random $((SEED + round)) $some || take_over
    round=$((round + 1))
    [ "$(at_random)" -gt "$before" ] || done=$((done + 1))
    check "random actions go on" [ $done -lt 5 ]
    sound "at random: $(at_random)"
done
tr -d '\r' <"$log" | sed -n 's/.*\(did\|dies\): at random: //p' | tr ' ' '\n' | awk -F = 'NF == 2 { sum[$1] += $2 } END { for (kind in sum) print "  at random: " kind, sum[kind] }' | sort

PAUSE=0
for death in $DEATHS; do
    die "$death"
    told=$(tr -d '\r' <"$log" | sed -n 's/.*death: //p' | tail -n 1)
    case $told in
    *"configuration page") check "its page is read-only" [ "$(setpci -s 00:$HOSTILE.0 INTERRUPT_LINE)" != a5 ] ;;
    esac
    take_over
    sound "death: $told"
done

# Again and again, each time as soon as it is there, until it is given up.
given_up() { cat /var/log/bulkhead/*.log | grep -q "the devices of guest hostile are unplugged"; }
deadline=$(($(now) + 120000))
until given_up; do
    [ "$(now)" -lt $deadline ] || failure "a stub that dies again and again is never given up"
    xl destroy $stub >/dev/null 2>&1
    usleep 100000
done
sound "death again and again"

took=$((($(now) - start) / 1000))
say "attacked for $took s; $(lives) lives"
equal "what Xen should have refused" "" "$(tr -d '\r' <"$log" | grep -E 'UNSOUND|not sound')"
equal "attacks that failed by themselves" "" "$(tr -d '\r' <"$log" | grep 'failed: ')"
in_guest witness "kill -INT \$(cat /tmp/ping); sleep 1; cat /tmp/pings" >/tmp/pings
counts=$(sed -n 's/^\([0-9]*\) .*transmitted, \([0-9]*\) .*received.*/\1 \2/p' /tmp/pings)
lost=$((${counts% *} - ${counts#* }))
accesses_end witness
slowest witness-accesses 10
equal "the second guest's pings lost of ${counts% *} meanwhile" 0 $lost
equal "its accesses given up" "" "$(awk '$2 - $1 >= 2 || $3 - $2 >= 2 || $4 - $3 >= 2' /tmp/accesses)"
equal "its stub is the domain that it was" "$witness_stub" "$(xl domid witness-bulkhead)"
bulkhead status --json >/rig/out/status.json
equal "its stub's restarts" "[0,0]" "$(jq -c '.stubs[] | select(.name == "witness-bulkhead") | [.served.counters.restarts, .served.revivals // 0]' /rig/out/status.json)"
say "a list of domains and nodes: at most $(longest listing-alone) ms alone, at most $(longest listing) ms under attack"
for kind in status attach detach destroy; do in_time $kind; done
kernel=$(dmesg | wc -l)
xen=$(xl dmesg | wc -l)
service=$(($(lines /var/log/bulkhead/*.log) - service))
per_minute() { echo $(($1 * 60 / took)); }
say "log lines: service $service, dom0's kernel $kernel, Xen $xen"
check "no log was flooded" [ "$(per_minute $((kernel + xen + service)))" -lt 600 ]
figure attacks "$(echo "$ATTACKS" | wc -w)"
figure deaths "$(echo "$DEATHS" | wc -w)"
figure random-actions "$(at_random)"
figure attacked "$took" s
figure pings-lost $lost "of ${counts% *}"
figure log-lines-service "$(per_minute "$service")" per minute
figure log-lines-dom0-kernel "$(per_minute "$kernel")" per minute
figure log-lines-xen "$(per_minute "$xen")" per minute

check "bulkhead destroy" bulkhead destroy hostile
quiet 0000:00:$HOSTILE.0
inventory >/tmp/inventory.after
nothing_left() { nodes | diff /tmp/nodes.before -; }
within 10 "no nodes are left behind" nothing_left
equal "what could leak" "" "$(diff /tmp/inventory.before /tmp/inventory.after)"
equal "the second guest's pings lost of 10 after" 0 "$(pings_lost witness 10)"
success
