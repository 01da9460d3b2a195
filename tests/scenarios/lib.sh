# What scenarios share: verdicts, checks, and guests.
# shellcheck shell=sh

# A message of the commands is one line, for the scenarios look for words in it.
export COLUMNS=9999

ended=
finish() { # CODE VERDICT
    ended=1
    # One line, though a command that is named in it may have more.
    echo "VERDICT $(echo "$2" | tr '\n' ' ')"
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
    if [ -d /run/systemd/system ]; then
        echo "--- the end of the journal"
        journalctl --no-pager --lines=40 --output=short-monotonic
    fi
}

# --- a Debian host (`#: host debian`), on which $BOOT tells how often it has booted

# reboot_host: reboots it in an orderly way. The script runs again from its start.
reboot_host() {
    ended=1
    touch /run/rig/reboot
    exit 0
}

# install_bulkhead: by its package.
install_bulkhead() {
    check "apt install" env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes /rig/bulkhead_*.deb
}
# power_off_within SECONDS: the host powers off in an orderly way after the script, and has so much time for it. Without
# this it is switched off.
power_off_within() { echo "$1" >/run/rig/power-off; }
# shutdown_complaints: prints what the journal of the boot before has of units that did not end in time or in order.
shutdown_complaints() {
    journalctl --no-pager --boot=-1 --output=cat | grep -E "timed out|Failed with result|State '.*' timed|Killing process|still around after"
}

# say TEXT: a line of the report.
say() { echo "  $*"; }

# figure NAME VALUE UNIT...: a line of the report that `cargo verify` keeps as data, for docs/containment.md. NAME is in
# lower case, with hyphens; VALUE is a number.
figure() { say "figure $*"; }

# check WHAT COMMAND...: COMMAND succeeds, or the scenario fails.
check() {
    label=$1
    shift
    if "$@" >/tmp/check 2>&1; then
        echo "ok: $label"
    else
        code=$?
        cat /tmp/check
        failure "$label (exit code $code of: $*)"
    fi
}

# refused WHAT PATTERN COMMAND...: COMMAND fails and says why in words that match PATTERN.
refused() {
    label=$1
    pattern=$2
    shift 2
    if "$@" >/tmp/check 2>&1; then
        cat /tmp/check
        failure "$label: not refused: $*"
    fi
    grep -qiE -- "$pattern" /tmp/check || { cat /tmp/check; failure "$label: no word of '$pattern' in the refusal of: $*"; }
    echo "ok: $label: $(grep -iE -m 1 -- "$pattern" /tmp/check)"
}

# equal WHAT EXPECTED FOUND
equal() {
    [ "$2" = "$3" ] || failure "$1: expected '$2', found '$3'"
    echo "ok: $1: $3"
}

# within SECONDS WHAT COMMAND...: COMMAND succeeds before SECONDS have passed.
within() {
    left=$(($1 * 5))
    label=$2
    shift 2
    until "$@" >/tmp/check 2>&1; do
        left=$((left - 1))
        [ $left -gt 0 ] || { cat /tmp/check; failure "$label: not in time: $*"; }
        usleep 200000
    done
    echo "ok: $label"
}

# eight_programs: prints how many ms eight programs take that ask xenstored one after another.
eight_programs() {
    read -r from _ </proc/uptime
    for _ in 1 2 3 4 5 6 7 8; do xenstore-read domid >/dev/null; done
    read -r to _ </proc/uptime
    echo $((${to%.*}${to#*.}0 - ${from%.*}${from#*.}0))
}
# needs_speed: skips a scenario that judges waits of a second or two on a machine that is too slow for that: those of guests
# and of dom0 end on it whatever the stub does. Measured: stub-restarts and stub-destroyed succeed where it prints 1030 and 1200.
needs_speed() {
    # The first one of its kind is read from the disk.
    eight_programs >/dev/null
    took=$(eight_programs)
    figure eight-programs "$took" "ms for eight programs that ask xenstored"
    [ "$took" -le 1500 ] || skip "this machine takes $took ms for eight programs that ask xenstored, 1500 at most: it is too slow to judge waits of a second"
}

# watch_machine: from now on /tmp/still has a line for each time that a processor of this machine stood still for over half a
# second, as an emulated one does when the processors below it are taken by others: the guests on it stand still with it.
watch_machine() {
    : >/tmp/still
    for processor in $(seq 0 $(($(nproc) - 1))); do
        (while :; do
            read -r from _ </proc/uptime
            usleep 100000
            read -r to _ </proc/uptime
            for_ms=$((${to%.*}${to#*.}0 - ${from%.*}${from#*.}0))
            [ $for_ms -le 600 ] || echo "processor $processor stood still for $for_ms ms" >>/tmp/still
        done) &
        busybox taskset -p -c "$processor" $! >/dev/null
    done
}
# unsteady: prints what has kept this machine from its work since watch_machine, a line each. A scenario may know of more.
unsteady() { cat /tmp/still; }
# steadily WHAT COMMAND...: COMMAND succeeds. If it does not, and something has kept the machine from its work over it, it is
# run again, twice at most. If that was so each time and the machine is slow, the scenario is skipped.
steadily() {
    steady=$1
    shift
    for try in 1 2 3; do
        before=$(unsteady | wc -l)
        "$@" && echo "ok: $steady" && return
        sleep 1
        [ "$(unsteady | wc -l)" -gt "$before" ] || failure "$steady"
        say "$steady: try $try does not count: $(unsteady | tail -n +$((before + 1)) | tr '\n' ';')"
    done
    took=$(eight_programs)
    [ "$took" -gt 1000 ] || failure "$steady: at all three tries, and eight programs that ask xenstored take $took ms"
    skip "this machine takes $took ms for eight programs that ask xenstored, and this failed three times: $steady"
}

# bridge_up NAME ADDRESS/BITS: dom0 has a bridge of that name, with this address. It leads to domains and nowhere else.
bridge_up() {
    modprobe bridge && modprobe xen-netback && ip link add "$1" type bridge && ip addr add "$2" dev "$1" &&
        ip link set "$1" up
}
# on_bridge NAME DOMID: the interface of that domain is on the bridge, and up.
on_bridge() {
    [ -e "/sys/class/net/$1/brif/vif$2.0" ] && [ $(($(cat "/sys/class/net/vif$2.0/flags") & 1)) = 1 ]
}

# collect_syslog DIR ADDRESS: rsyslog (`#: packages rsyslog`) listens there, and leaves each message as it came in DIR/log.
collect_syslog() {
    mkdir -p "$1"
    cat >"$1/rsyslog.conf" <<END
module(load="imudp")
input(type="imudp" address="$2" port="514" ruleset="stubs")
template(name="whole" type="string" string="%rawmsg%\n")
ruleset(name="stubs") { action(type="omfile" file="$1/log" template="whole") }
END
    : >"$1/log"
    in-packages rsyslogd -f "$1/rsyslog.conf" -i "$1/rsyslogd.pid"
}
# same_lines STUB LOG: that log has each line of the stub's console, in order, and nothing else of it. A line that was under
# way at a failure may be there twice. Leaves the lines in /tmp/console and /tmp/collected.
same_lines() {
    tr -d '\r' <"$(stub_log "$1")" | sed -nE 's/^\[ *[0-9]+\.[0-9]+\] (ERROR|WARN |INFO |DEBUG) //p' >/tmp/console
    grep -F " $1 bulkhead-stub " "$2" |
        awk '{ match($0, /sequenceId="[0-9]*"/); if (!seen[substr($0, RSTART, RLENGTH)]++) print }' |
        sed 's/^.*sequenceId="[0-9]*"\] //' >/tmp/collected
    diff /tmp/console /tmp/collected
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

# has NAME BDF...: the guest has connected, and has these devices by `bulkhead status`.
has() {
    [ "$(bulkhead status --json | jq -r --arg guest "$1" \
        '[.stubs[] | select(.guest.name == $guest and .guest.state == "connected") | .devices[].bdf] | join(" ")')" = "$(shift; echo "$*")" ]
}
# is_new NAME DOMID BDF...: the guest is another domain by now, and has these devices.
is_new() {
    now=$(xl domid "$1" 2>/dev/null) && [ "$now" != "$2" ] && name=$1 && shift 2 && has "$name" "$@"
}

# bare_guest NAME WORDS [LINE]...: writes NAME.cfg, a guest that is no Linux: what it does with its PCI backend is told by
# WORDS on its command line (tests/guest).
bare_guest() {
    name=$1
    words=$2
    shift 2
    cat >"/root/$name.cfg" <<END
name = "$name"
type = "pv"
kernel = "/rig/guest/test-guest"
extra = "$words"
memory = 16
vcpus = 1
e820_host = 1
END
    for line; do
        echo "$line" >>"/root/$name.cfg"
    done
}

# asks NAME WORDS: the bare guest asks dom0 for something that begins so.
asks() { case $(xenstore-read "/local/domain/$(xl domid "$1")/data/ask" 2>/dev/null) in "$2"*) ;; *) false ;; esac; }
# answer_guest NAME: what it asked for is done.
answer_guest() { xenstore-write "/local/domain/$(xl domid "$1")/data/ask" ""; }
# measured NAME: the lines NAME-OF-REQUEST MIN P50 P90 MAX of the bare guest, in nanoseconds.
measured() { tr -d '\r' <"$(stub_log "$1")" | sed -n 's/.*INFO *measured //p'; }
# is_done NAME: the bare guest has come to its end, well or not.
is_done() { grep -qE 'INFO  done|failed:|panic' "$(stub_log "$1")"; }

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

# accesses NAME: from now on the guest reads and writes a register of its first function, one access after another.
accesses() {
    in_guest "$1" 'rm -f /tmp/accessed; (number=0; while [ ! -e /tmp/accessed ]; do
        number=$(((number + 4) % 64)); value=$(printf %02x $number)
        read -r begin _ </proc/uptime
        ids=$(setpci -s 00:00.0 VENDOR_ID)
        read -r second _ </proc/uptime
        setpci -s 00:00.0 CACHE_LINE_SIZE=$value
        read -r third _ </proc/uptime
        back=$(setpci -s 00:00.0 CACHE_LINE_SIZE)
        read -r end _ </proc/uptime
        echo $begin $second $third $end $ids $value $back
    done) >/tmp/accesses 2>&1 & echo started'
}
# accesses_end NAME: no more. Leaves the times they took in ms in /tmp/times, the shortest first. An access with a wrong
# answer fails the scenario, but for those that pcifront gave up: they take its two seconds.
accesses_end() {
    in_guest "$1" 'touch /tmp/accessed; sleep 2; cat /tmp/accesses' >/tmp/accesses
    awk '{ for (i = 1; i < 4; i++) print int(($(i + 1) - $i) * 1000 + 0.5) }' /tmp/accesses | sort -n >/tmp/times
    say "$(wc -l </tmp/times) accesses, typically $(sed -n "$(($(wc -l </tmp/times) / 2))p" /tmp/times) ms, process included"
    check "accesses: often enough" [ "$(wc -l </tmp/times)" -ge 30 ]
    equal "accesses with a wrong answer, but for those given up" "" \
        "$(awk '$4 - $1 < 2 && ($5 != 8086 || $6 != $7)' /tmp/accesses)"
}
# slowest NAME COUNT: of so many accesses the longest times, as figures NAME-p50 and NAME-max.
slowest() {
    say "the $2 slowest: $(tail -n "$2" /tmp/times | tr '\n' ' ')ms"
    figure "$1-p50" "$(tail -n "$2" /tmp/times | sed -n "$((($2 + 1) / 2))p")" ms
    figure "$1-max" "$(tail -n 1 /tmp/times)" ms
}

# processes NAME: prints the processes that are called so.
processes() {
    for comm in /proc/[0-9]*/comm; do
        read -r name 2>/dev/null <"$comm" && [ "$name" = "$1" ] && echo "$comm" | cut -d / -f 3
    done
    return 0
}
# service_pid: prints the process that serves the stubs.
service_pid() { processes bulkhead-worker; }
# spare_pid: prints the one that takes its place when it dies.
spare_pid() { processes bulkhead-spare; }
# launcher_pid: prints the first process of the service; the others end with it.
launcher_pid() {
    for process in $(processes bulkhead) $(processes bulkhead-inject); do
        case $(tr '\0' ' ' <"/proc/$process/cmdline") in *" serve "*) echo "$process" ;; esac
    done
}
# complete: a worker serves, and another stands by.
complete() { [ -n "$(service_pid)" ] && [ -n "$(spare_pid)" ]; }

stub_log() { echo "/var/log/xen/guest-$1.log"; }

# xen_lines KEY PATTERN: counts the lines that match among what Xen prints for a debug key.
xen_lines() {
    xl dmesg -c >/dev/null
    xl debug-keys "$1"
    usleep 200000
    xl dmesg -c | grep -cE "$2"
}
# inventory: what could leak, as text that must be the same before and after.
inventory() {
    echo "message interrupts of guests: $(xen_lines i 'MSI.* d[1-9][0-9]*:')"
    echo "event channels to guests: $(xen_lines e 'd=[1-9]')"
    echo "grants in use: $(xen_lines g '\[0x[0-9a-f]+\]')"
    echo "xenstore nodes: $(xenstore-ls -f / | grep -cE 'bulkhead|/pci/')"
    echo "domains: $(xl list | awk 'NR > 1 { print $1 }' | tr '\n' ' ')"
    echo "free memory, MiB: $(xl info free_memory)"
}

# complaints: prints what dom0's kernel has complained of since its log was cleared.
complaints() { dmesg | grep -iE 'pciback.*(err|fail|warn)|call trace|bug:|nobody cared|DMAR.*fault'; }

# guest_complaints NAME: prints what the guest's kernel has complained of, and leaves all that it said in
# /rig/out/NAME.dmesg. One is of Linux's own making, whatever the backend: when the last device has gone,
# pcifront removes the bus's parent before the bus, and warns of that.
guest_complaints() {
    in_guest "$1" dmesg >"/rig/out/$1.dmesg"
    awk '/cut here/ { warning = ""; inside = 1 }
        inside { warning = warning $0 "\n"; if (/end trace/) { inside = 0; if (warning !~ /pcifront_free_roots/) printf "%s", warning }; next }
        1' "/rig/out/$1.dmesg" |
        grep -iE 'enable msix get err|not responding|pcifront.*(err|fail)|nobody cared|call trace'
}

# --- each kind of device, by the driver that it has in the guest

# Shell for the guest: wait until a card's link or a disk is there, see that it answers, leave otherwise.
NETWORK_UP='ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
    until [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; do [ $((n += 1)) -lt 50 ] || exit 1; usleep 200000; done'
DISK_UP='until [ -b $disk ] && head -c 512 $disk >/dev/null; do [ $((n += 1)) -lt 50 ] || exit 1; usleep 200000; done'
# Shell for the guest: the lines of /proc/interrupts that belong to the function at $at; a driver may leave some of its
# vectors unused.
INTERRUPTS='cd /sys/bus/pci/devices/$at; irqs=$(ls msi_irqs 2>/dev/null)
    for irq in ${irqs:-$(cat irq)}; do grep "^ *$irq:" /proc/interrupts || echo "$irq: 0 unused"; done'
REBIND='cd /sys/bus/pci/devices/$at/driver && echo $at >unbind && echo $at >bind || exit 1'
# Shell for the guest or dom0: fill the start of $disk with random bytes and print their checksum; print the checksum
# of what the medium holds there.
DISK_FILL='new=/tmp/${disk##*/}; head -c 4194304 /dev/urandom >$new && dd if=$new of=$disk bs=1M conv=fsync 2>/dev/null &&
    sha256sum <$new'
DISK_SUM='echo 3 >/proc/sys/vm/drop_caches; head -c 4194304 $disk | sha256sum'

# in_mode WHAT MODE LINES: the guest's interrupts, by LINES of its /proc/interrupts, are of MODE, such as `msi-x 3`.
in_mode() {
    equal "$1: interrupts in the guest" "$2" "$(awk '
        / unused$/ { next }
        { mode = / -pcifront-msi-x / ? "msi-x" : / -pcifront-msi / ? "msi" : / -pcifront / ? "intx" : $0; modes[mode] }
        END { for (mode in modes) printf "%s ", mode; print NR }' "$3")"
}
# mode_of BDF: prints the same by `bulkhead status`.
mode_of() {
    bulkhead status --json |
        jq -r --arg bdf "$1" '.stubs[].devices[] | select(.bdf == $bdf) | "\(.mode) \(.pirqs | length)"'
}
# fired LINES: how many interrupts there were by lines of /proc/interrupts.
fired() { awk '{ sum += $2 } END { print sum + 0 }' "$1"; }

# moves_data NAME network|DISK WHEN: 20 pings are answered; or random bytes are written and read back.
moves_data() {
    if [ "$2" = network ]; then
        equal "$1: pings lost of 20 $3" 0 "$(pings_lost "$1" 20 0.1)"
    else
        in_guest "$1" "disk=$2; $DISK_FILL && $DISK_SUM" >/tmp/sums
        equal "$1: checksums of what was written to $2 and read $3, equal ones once" 1 "$(uniq /tmp/sums | grep -c .)"
    fi
}

# quiet BDF: the device can send neither DMA nor interrupts.
quiet() {
    lspci -vv -s "$1" 2>/dev/null >/tmp/lspci
    equal "$1: bus master, and messages that are on" "BusMaster- " \
        "$(grep -oE 'BusMaster[-+]' /tmp/lspci) $(grep -oE 'MSI(-X)?: Enable\+' /tmp/lspci)"
}

# same_in_dom0 NAME DISK DRIVER...: dom0's own drivers read from DISK what the guest NAME wrote last.
same_in_dom0() {
    name=$1 disk=$2
    shift 2
    check "dom0: modprobe $*" modprobe -a "$@"
    check "dom0: $disk comes up" sh -c "disk=$disk; $DISK_UP"
    equal "$name: dom0 reads the same from $disk" "$(tail -n 1 "/tmp/$name.sum")" "$(sh -c "disk=$disk; $DISK_SUM")"
}

# replug NAME WORKS BDF...: the functions leave the guest while their drivers have them, and come back. Then WORKS, shell
# for the guest, succeeds; what it printed is left in /tmp/lines.
replug() {
    name=$1 works=$2
    shift 2
    check "$name: hot unplug" bulkhead detach "$@"
    equal "$name: the guest's bus without $*" "" "$(in_guest "$name" "lspci -n")"
    check "$name: hot replug" bulkhead attach "$name" --device "$@"
    check "$name: it comes up again" in_guest "$name" "$works"
    cp /tmp/check /tmp/lines
}

# device NAME SLOT.FUNCTION MODE network|DISK DRIVER...: the function works for a guest of its own with these drivers, in
# its own interrupt mode; so it does after five rebinds, and after a hot unplug and replug. The checksum of its DISK is
# left in /tmp/NAME.sum.
device() {
    name=$1 bdf=0000:00:$2 mode=$3 data=$4
    shift 4
    read -r began _ </proc/uptime
    [ "$data" = network ] && up=$NETWORK_UP || up="disk=$data; $DISK_UP"
    at="at=0000:00:00.0"
    guest_config "$name"
    check "$name: bulkhead run" bulkhead run "/root/$name.cfg" --device "$bdf"
    check "$name: it comes up with $*" in_guest "$name" "$at; modprobe -a $*; $up; $INTERRUPTS"
    cp /tmp/check /tmp/lines
    in_mode "$name" "$mode" /tmp/lines
    equal "$name: interrupts by status" "$mode" "$(mode_of "$bdf")"
    moves_data "$name" "$data" "at first"
    in_guest "$name" "$at; $INTERRUPTS" >/tmp/lines.later
    cat /tmp/lines.later
    check "$name: interrupts came while data moved" [ "$(fired /tmp/lines.later)" -gt "$(fired /tmp/lines)" ]
    for round in 1 2 3 4 5; do
        check "$name: rebind $round" in_guest "$name" "$at; $REBIND; $up; $INTERRUPTS"
        cp /tmp/check /tmp/lines
        in_mode "$name: rebind $round" "$mode" /tmp/lines
    done
    equal "$name: interrupts by status after the rebinds" "$mode" "$(mode_of "$bdf")"
    moves_data "$name" "$data" "after the rebinds"
    [ "$data" = network ] || cp /tmp/sums "/tmp/$name.sum"
    replug "$name" "$at; $up; $INTERRUPTS" "$bdf"
    in_mode "$name: after the replug" "$mode" /tmp/lines
    if [ "$data" = network ]; then
        moves_data "$name" network "after the replug"
    else
        equal "$name: $data has kept what was written" "$(tail -n 1 "/tmp/$name.sum")" "$(in_guest "$name" "disk=$data; $DISK_SUM")"
    fi
    equal "$name: complaints in the guest" "" "$(guest_complaints "$name")"
    check "$name: xl destroy" xl destroy "$name"
    within 10 "$name: the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
    quiet "$bdf"
    check "$name: given back to dom0" xl pci-assignable-remove -r "$bdf"
    read -r now _ </proc/uptime
    say "$name took $(awk -v a="$began" -v b="$now" 'BEGIN { print b - a }') s"
}
