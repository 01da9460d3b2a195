#!/bin/sh
# The same accesses to the same devices by xen-pciback and by Bulkhead: each answer and what is left in the device.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: device nvme,serial=1,drive=d0,addr=7
#: timeout 1200
. /rig/scenarios/lib.sh
# To repeat a run, put the seed that it printed here.
SEED=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
DEVICES="e1000e edu nvme"
# A part, for the sake of time. The whole, 120,000 accesses at random in all: cargo verify --scenario differential --set WHOLE=1
COUNT=3000
LEFT_OUT="nvme writes|e1000e writes"
[ -z "$ALL" ] || COUNT=8000 LEFT_OUT="nvme writes"
[ -z "$WHOLE" ] || COUNT=40000 LEFT_OUT=
say "seed $SEED, $COUNT accesses at random to each of $DEVICES"

bdf() { # DEVICE, in dom0
    case $1 in
    e1000e) echo 0000:00:05.0 ;;
    edu) echo 0000:00:06.0 ;;
    nvme) echo 0000:00:07.0 ;;
    esac
}
guest_bdf() { # DEVICE
    case $1 in
    e1000e) echo 0000:00:00.0 ;;
    edu) echo 0000:00:01.0 ;;
    nvme) echo 0000:00:02.0 ;;
    esac
}
# What both backends' accesses are made for: each device as it is now.
references=
for device in $DEVICES; do
    cat "/sys/bus/pci/devices/$(bdf "$device")/config" >"/rig/out/$device"
    references="$references etc/sweep/$device=/rig/out/$device"
done
export GUEST_INITRD=/root/sweep.initrd
# shellcheck disable=SC2086 # one word per file
check "initrd with the comparing program" guest-initrd $GUEST_INITRD usr/bin/config-sweep=/rig/bin/config-sweep $references

# sweep BACKEND DEVICE PHASE: leaves /rig/out/BACKEND/DEVICE-PHASE.{recording,left}; the guest has the backend's name.
sweep() {
    file=/rig/out/$1/$2-$3
    guest-run "$1" 900 "config-sweep record $(guest_bdf "$2") $3 /tmp/recording --reference /etc/sweep/$2 \
        --seed $SEED --count $COUNT >/tmp/sweep 2>&1 || { cat /tmp/sweep; exit 1; }; cat /tmp/recording" \
        >"$file.recording" || { cat "$file.recording"; failure "$1: $2, $3: nothing was recorded"; }
    cat "/sys/bus/pci/devices/$(bdf "$2")/config" >"$file.left"
    echo "ok: $1: $2, $3"
}

# driver DEVICE: the guest's driver, if there is one, and how to tell that it works.
driver() {
    case $1 in
    e1000e) echo "/sys/class/net/eth0" ;;
    nvme) echo "/dev/nvme0n1" ;;
    esac
}

# all BACKEND: all phases on all devices.
all() {
    mkdir -p "/rig/out/$1"
    check "$1: the guest's shell answers" in_guest "$1" true
    check "$1: tracing" in_guest "$1" mount -t tracefs tracefs /sys/kernel/tracing
    for device in $DEVICES; do
        for phase in reads writes random power; do
            echo "$device $phase" | grep -qxE "$LEFT_OUT" || sweep "$1" "$device" $phase
        done
        [ -n "$(driver "$device")" ] || continue
        check "$1: $device: its driver" in_guest "$1" "modprobe $device
            for i in \$(seq 100); do [ -e $(driver "$device") ] && exit 0; usleep 100000; done; exit 1"
        sweep "$1" "$device" driven
        check "$1: $device: its driver lets go" in_guest "$1" "echo $(guest_bdf "$device") >/sys/bus/pci/drivers/$device/unbind"
        sweep "$1" "$device" released
    done
}

guest_config bulkhead
# shellcheck disable=SC2046 # one word per device
check "bulkhead run" bulkhead run /root/bulkhead.cfg $(for device in $DEVICES; do echo "--device $(bdf "$device")"; done)
all bulkhead
bulkhead status --json >/rig/out/status.json
check "bulkhead destroy" bulkhead destroy bulkhead

for device in $DEVICES; do
    # Bulkhead gives a device back with INTx disabled, so that it cannot hold its line down: here both begin alike.
    setpci -s "$(bdf "$device")" COMMAND=0:400
    check "xen-pciback takes $device" xl pci-assignable-add "$(bdf "$device")"
done
guest_config pciback "pci = [ $(for device in $DEVICES; do echo "\"$(bdf "$device")\","; done) ]"
check "pciback: xl create" xl create -q /root/pciback.cfg
all pciback
check "pciback: xl destroy" xl destroy pciback

config-sweep compare /rig/out/pciback /rig/out/bulkhead
[ $? = 0 ] || failure "differences that docs/parity.md does not list; seed $SEED"
success
