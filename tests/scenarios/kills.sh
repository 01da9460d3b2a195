#!/bin/sh
# Guests, stubs and the service are killed in an order drawn from a seed: whoever is left works on after each round, and nothing leaks.
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: device edu,addr=7
#: timeout 900
. /rig/scenarios/lib.sh
needs_speed
# The full run: cargo verify --scenario kills --set ROUNDS=500 --timeout 5400. To repeat one: --set SEED=…, as it was printed.
ROUNDS=${ROUNDS:-$([ "$ALL" ] && echo 12 || echo 8)}
SEED=${SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
say "seed $SEED, $ROUNDS rounds"
guests=0 stubs=0 services=0 lost=0

# In place of the unit that starts the service again on a real host.
mkdir -p /var/log/bulkhead
(while :; do
    bulkhead serve >>/var/log/bulkhead/serve.log 2>&1
    usleep 100000
done) &

# run GUEST DEVICE: it comes up with its device.
run() { check "$1: bulkhead run" bulkhead run "/root/$1.cfg" --device "$2"; }
# start GUEST. Two are Linux, and their pings, five a second, are noted from now on; the third is there to be killed often,
# for it comes up at once.
start() {
    case $1 in
    one) run one 0000:00:05.0 ;;
    two) run two 0000:00:06.0 ;;
    three)
        run three 0000:00:07.0
        connections=$((connections + 1))
        within 20 "three: connected" sh -c "[ \$(grep -c 'INFO  connected' $(stub_log three)) = $connections ]"
        return
        ;;
    esac
    check "$1: e1000e comes up" network_up "$1"
    in_guest "$1" "ping -i 0.2 10.0.2.2 >/tmp/pings 2>&1 & echo 0 >/tmp/seen"
    echo 0 >"/tmp/lost.$1"
}
guest_config one
guest_config two
bare_guest three "mode=ops seed=$SEED count=300"
connections=0

# Shell for the guest: it reads its card's configuration right and writes it, the one by the stub and the other by the
# service too; pings have been answered since the last time. Prints how many were not, of all up to the last answered.
WORKS='cd /sys/bus/pci/devices/0000:00:00.0; new=$((8 + $(date +%s) % 2 * 8))
    [ "$(setpci -s 00:00.0 VENDOR_ID)" = 8086 ] && setpci -s 00:00.0 CACHE_LINE_SIZE=$(printf %02x $new) &&
    [ $((0x$(setpci -s 00:00.0 CACHE_LINE_SIZE))) = $new ] || exit 1
    set -- $(awk -F seq= "NF > 1 { count++; last = \$2 + 0 } END { print last, count }" /tmp/pings)
    [ "$1" -gt $(($(cat /tmp/seen) + 2)) ] || exit 1; echo $1 >/tmp/seen; echo $(($1 + 1 - $2))'
works() { # GUEST
    in_guest "$1" "$WORKS" >/tmp/works || return
    cp /tmp/works "/tmp/lost.$1"
}
all_work() { # WHEN
    for guest in one two; do
        left=50
        until works $guest; do
            left=$((left - 1))
            [ $left -gt 0 ] || { cat /tmp/works; failure "$1: $guest does not work"; }
            usleep 200000
        done
    done
}
clock() { cut -d. -f1 /proc/uptime; }
# draw N: sets drawn to a number below N.
draw() {
    SEED=$(((SEED * 1103515245 + 12345) % 2147483648))
    drawn=$((SEED / 65536 % $1))
}
kill_guest() {
    [ "$1" = three ] || lost=$((lost + $(cat "/tmp/lost.$1")))
    xl destroy "$1" || failure "xl destroy $1"
    within 20 "$1: the attachment is cleared away" sh -c "bulkhead status --json | jq -e '[.stubs[] | select(.guest.name == \"$1\")] == []'"
    start "$1"
    guests=$((guests + 1))
}
# Five lives of less than three seconds in a row are a crash loop, which ends another way (stub-lost); the order drawn
# must not make one.
kill_stub() {
    until [ $(($(clock) - $(cat "/tmp/killed.$1" 2>/dev/null || echo 0))) -gt 4 ]; do usleep 200000; done
    clock >"/tmp/killed.$1"
    xl destroy "$1-bulkhead" || failure "xl destroy $1-bulkhead"
    stubs=$((stubs + 1))
}
kill_service() {
    draw 4
    case $drawn in
    0) kill -KILL "$(launcher_pid)" || failure "kill of the launcher" ;;
    *) kill -KILL "$(service_pid)" || failure "kill of the worker" ;;
    esac
    services=$((services + 1))
}
round() {
    draw 2 && [ $drawn = 0 ] && guest=one || guest=two
    draw 20
    case $drawn in
    0) echo "round $1: guest $guest" && kill_guest $guest ;;
    [1-4]) echo "round $1: guest three" && kill_guest three ;;
    [5-9] | 1[0-1]) echo "round $1: stub of $guest" && kill_stub $guest ;;
    *) echo "round $1: service" && kill_service ;;
    esac
    all_work "round $1"
}
# settle WHEN: both stubs have come back once, for some nodes are there only then.
settle() {
    kill_stub one
    kill_stub two
    all_work "$1"
    sleep 2
}
# held: what could leak, and what the service holds. The order of the domains is that of their numbers, which change.
held() {
    inventory | grep -v ^domains
    echo "domains: $(xl list | awk 'NR > 1 { print $1 }' | sort | tr '\n' ' ')"
    echo "open files of the service: $(ls "/proc/$(service_pid)/fd" | wc -l)"
}

start one
start two
start three
settle "at first"
held >/tmp/before
stubs=0
cat /tmp/before
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$(service_pid)/status"; }
resident=$(resident)
dmesg -c >/dev/null
read -r began _ </proc/uptime
number=0
while [ $number -lt "$ROUNDS" ]; do
    round $((number += 1))
done
read -r now _ </proc/uptime
say "killed: $guests guests, $stubs stubs, $services times the service, in $(awk -v a="$began" -v b="$now" 'BEGIN { print b - a }') s"
settle "at last"
held >/tmp/after
lost=$((lost + $(cat /tmp/lost.one) + $(cat /tmp/lost.two)))
leaks=$(diff /tmp/before /tmp/after | grep -c '^>')
diff /tmp/before /tmp/after
figure kills-rounds "$ROUNDS" rounds
figure kills-guests $guests
figure kills-stubs $stubs
figure kills-services $services
figure kills-pings-lost $lost pings
figure kills-leaks "$leaks"
equal "kinds of things that leaked" 0 "$leaks"
equal "pings lost" 0 $lost
check "memory of the service grew by less than 1 MiB: from $resident KiB to $(resident)" [ "$(resident)" -lt $((resident + 1024)) ]
equal "complaints in dom0" "" "$(complaints)"
success
