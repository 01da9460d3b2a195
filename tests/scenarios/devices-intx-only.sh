#!/bin/sh
# Devices that know nothing but INTx work in guests whose lines cross with each other's, with dom0's, and with one that a function without a driver holds down.
#: all
#: suite bookworm
#: device pcnet,netdev=n0,addr=3
#: device ne2k_pci,netdev=n1,addr=4
#: device i82559c,netdev=n2,addr=5
#: device tulip,netdev=n3,addr=6
#: device usb-ehci,id=ehci,addr=7
#: device usb-storage,bus=ehci.0,drive=d0
#: device piix3-usb-uhci,id=uhci,addr=8
#: device usb-storage,bus=uhci.0,drive=d1
#: device pci-ohci,id=ohci,addr=9
#: device usb-storage,bus=ohci.0,drive=d2
#: device am53c974,id=am,addr=a
#: device megasas,id=sas,addr=b,msi=off,msix=off
#: device scsi-hd,bus=sas.0,drive=d4
#: device sdhci-pci,addr=c
#: device sd-card,drive=d5
#: device AC97,audiodev=a0,addr=d
#: device ES1370,audiodev=a1,addr=e
#: device e1000,netdev=n4,addr=10
#: timeout 600
. /rig/scenarios/lib.sh
# Slots four apart share a line on q35: 3, 7, b; 4, 8, c, 10 (dom0's); 5, 9, d; 6, a, e.
DOM0=0000:00:10.0 IDLE=0000:00:0a.0

# Shell for the guest: what each kind of device does for a living.
NETWORK='card=$(ls /sys/bus/pci/devices/$at/net) && ip addr add 10.0.2.15/24 dev $card && ip link set $card up && sleep 1
    ping -c 10 -i 0.2 -W 2 10.0.2.2; code=$?; ip addr del 10.0.2.15/24 dev $card; [ $code = 0 ]'
DISK='until disk=$(ls -d /sys/bus/pci/devices/$at/*/*/*/block/* /sys/bus/pci/devices/$at/*/*/*/*/*/*/block/* 2>/dev/null |
        head -n 1) && [ -n "$disk" ]; do [ $((n += 1)) -lt 75 ] || exit 1; usleep 200000; done
    disk=/dev/${disk##*/}; head -c 65536 /dev/urandom >/tmp/new
    dd if=/tmp/new of=$disk bs=65536 conv=fsync 2>/dev/null && echo 3 >/proc/sys/vm/drop_caches &&
    head -c 65536 $disk | cmp - /tmp/new && echo same'
SOUND='head -c 24000 /dev/zero >$dsp && echo played'

# slowly NAME COMMAND: runs it in a guest; USB controllers poll, and an emulated processor takes its time for that.
slowly() { guest-run "$1" 180 "$2"; }
# works NAME SLOT WHAT SHELL: the device in SLOT of the guest does WHAT, and interrupts meanwhile.
works() {
    in_guest "$1" "at=0000:00:$2.0; $INTERRUPTS" >/tmp/lines
    check "$1: $2: $3" slowly "$1" "at=0000:00:$2.0; $4"
    in_guest "$1" "at=0000:00:$2.0; $INTERRUPTS" >/tmp/lines.later
    say "$3: $(($(fired /tmp/lines.later) - $(fired /tmp/lines))) interrupts"
    check "$1: $2: interrupts came" [ "$(fired /tmp/lines.later)" -gt "$(fired /tmp/lines)" ]
}
disables_intx() { [ $((0x$(setpci -s $IDLE COMMAND) & 0x400)) != 0 ]; }
asserts_intx() { [ $((0x$(setpci -s $IDLE STATUS) & 8)) != 0 ]; }

dmesg -c >/dev/null
check "dom0 uses a card" modprobe e1000
card=$(ls /sys/bus/pci/devices/$DOM0/net)
ip addr add 10.0.2.15/24 dev "$card"
ip link set "$card" up

# As some firmware leaves it: a reset of the SCSI bus, which interrupts, and nobody who hears it.
setpci -s $IDLE COMMAND=1:1
ports=$(($(awk 'NR == 1 { print $1 }' "/sys/bus/pci/devices/$IDLE/resource")))
asserts_intx || printf '\003' | dd of=/dev/port bs=1 seek=$((ports + 12)) conv=notrunc 2>/dev/null
check "$IDLE, which has no driver, asserts its interrupt" asserts_intx
equal "its INTx-disable bit" 0 $((0x$(setpci -s $IDLE COMMAND) & 0x400))

check "bulkhead check names it too" sh -c "bulkhead check 0000:00:06.0 | grep '$IDLE has no driver and asserts INTx'"
guest_config g1
check "network cards" bulkhead run /root/g1.cfg --device 0000:00:03.0 0000:00:04.0 0000:00:05.0 0000:00:06.0
cp /tmp/check /tmp/run
check "run names the function without a driver" grep "$IDLE has no driver and asserts INTx" /tmp/run
check "and says that a line is shared with dom0" grep "INTx of 0000:00:04.0 is given although.*$DOM0.*dom0 answers" /tmp/run
check "INTx of $IDLE is disabled" disables_intx
check "g1: drivers" slowly g1 "modprobe -a pcnet32 ne2k-pci e100 tulip"
works g1 00 "pcnet32 answers pings" "$NETWORK"
works g1 01 "ne2k-pci answers pings" "$NETWORK"
works g1 02 "e100 answers pings" "$NETWORK"
works g1 03 "tulip answers pings" "$NETWORK"

guest_config g2
check "USB and sound" bulkhead run /root/g2.cfg --device 0000:00:07.0 0000:00:08.0 0000:00:09.0 0000:00:0d.0 0000:00:0e.0
check "g2: drivers" slowly g2 "modprobe -a ehci-pci uhci-hcd ohci-pci usb-storage sd_mod snd-intel8x0 snd-ens1370 snd-pcm-oss"
works g2 00 "a disk on ehci keeps what is written" "$DISK"
works g2 01 "a disk on uhci keeps what is written" "$DISK"
works g2 02 "a disk on ohci keeps what is written" "$DISK"
works g2 03 "snd-intel8x0 plays" "dsp=/dev/dsp; $SOUND"
works g2 04 "snd-ens1370 plays" "dsp=/dev/dsp1; $SOUND"
equal "complaints in g2" "" "$(guest_complaints g2)"
equal "complaints in g1" "" "$(guest_complaints g1)"

# --- INTx of the function without a driver comes back with the last guest that may be on its line
check "bulkhead destroy g1" bulkhead destroy g1
check "INTx of $IDLE is still disabled" disables_intx
check "bulkhead destroy g2" bulkhead destroy g2
equal "its INTx-disable bit afterwards" 0 $((0x$(setpci -s $IDLE COMMAND) & 0x400))
equal "notes about INTx that was disabled" "" "$(xenstore-ls /local/domain/0/bulkhead/intx-disabled 2>/dev/null)"

# Without the am53c974: its driver's handler crashes on the interrupt that is pending when it is requested, on any backend.
guest_config g3
check "SCSI and SD" bulkhead run /root/g3.cfg --device 0000:00:0b.0 0000:00:0c.0
check "g3: drivers" slowly g3 "modprobe -a megaraid_sas sdhci-pci sd_mod mmc_block"
works g3 00 "a disk on megaraid_sas keeps what is written" "$DISK"
works g3 01 "a card on sdhci keeps what is written" "$DISK"
check "dom0's pings are answered" ping -c 10 -i 0.2 -W 2 10.0.2.2
equal "complaints in dom0" "" "$(complaints)"
equal "complaints in g3" "" "$(guest_complaints g3)"

# --- what share-intx=0 does to such a device
check "bulkhead detach" bulkhead detach 0000:00:0c.0
refused "a device without other interrupts, where policy forbids to share" "0000:00:0c.0 could not interrupt its guest.*share-intx=0" \
    bulkhead attach g3 --device 0000:00:0c.0,share-intx=0
check "bulkhead destroy g3" bulkhead destroy g3
equal "complaints in dom0 at the end" "" "$(complaints)"
success
