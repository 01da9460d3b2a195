#!/bin/sh
# Declared guests have their devices on a Debian host: after a boot without a hand, by xendomains and by libvirt, also over reboots.
#: host debian
#: all
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: timeout 900
. /rig/scenarios/lib.sh
CARD=0000:00:05.0 EDU=0000:00:06.0
SAVED=/var/lib/libvirt/libxl/save/lv.save
virsh_xen() { virsh --connect xen:///system "$@"; }

if [ "$BOOT" = 1 ]; then
    install_bulkhead
    guest_config web 'passthrough = "enabled"'
    check "declare" bulkhead declare web --device $CARD
    mkdir -p /etc/xen/auto
    check "xl starts it at boot" cp /root/web.cfg /etc/xen/auto/web.cfg
    check "declare one for libvirt" bulkhead declare lv --device $EDU
    reboot_host
fi

# --- the host has booted: nobody has done anything
within 60 "systemctl is-system-running" systemctl --quiet is-system-running
equal "units that failed" "" "$(systemctl list-units --failed --plain --no-legend)"
within 60 "the guest that xendomains has started has its card" has web $CARD
check "the card comes up" network_up web
equal "interrupts by status" "msi-x 3" "$(mode_of $CARD)"
equal "starts before the first instruction" 1 "$(journalctl -u bulkhead GUEST=web -o cat | grep -c 'paused before its first instruction')"

check "destroy" bulkhead destroy web

# --- libvirt, whose unit conflicts with that of Xen's script
check "xendomains off" systemctl --quiet disable --now xendomains
cat >/root/lv.xml <<END
<domain type='xen'><name>lv</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type machine='xenpv'>linux</type><kernel>/rig/guest/vmlinux</kernel><initrd>/rig/guest/initrd</initrd>
<cmdline>console=hvc0</cmdline></os>
<features><xen><e820_host state='on'/><passthrough state='on'/></xen></features>
<on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>restart</on_crash>
<devices><console type='pty'/></devices></domain>
END
check "virsh define" virsh_xen define /root/lv.xml
check "virsh start" virsh_xen start lv
within 60 "it has its device" has lv $EDU
refused "virsh save" "failed to save domain" virsh_xen save lv /root/lv.save
refused "virsh managedsave" "failed to save domain" virsh_xen managedsave lv
# libvirt leaves a file, on which it would crash when it starts the guest again.
refused "bulkhead doctor" "rm $SAVED" bulkhead doctor --json
check "the file goes" rm $SAVED
check "it goes on" in_guest lv true
domid=$(xl domid lv)
check "virsh reboot" virsh_xen reboot lv
within 90 "it has its device again" is_new lv "$domid" $EDU
domid=$(xl domid lv)
in_guest lv '(sleep 1; reboot -f) >/dev/null 2>&1 & echo started' >/dev/null
within 90 "it has its device after a reboot from inside" is_new lv "$domid" $EDU
check "virsh destroy" virsh_xen destroy lv
within 30 "its device is free" sh -c "bulkhead status --json | jq -e '.stubs == []'"
check "virsh start again" virsh_xen start lv
within 60 "it has its device" has lv $EDU
equal "starts before the first instruction" 4 "$(journalctl -u bulkhead GUEST=lv -o cat | grep -c 'paused before its first instruction')"
check "virsh destroy" virsh_xen destroy lv
power_off_within 60
success
