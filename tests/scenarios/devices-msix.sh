#!/bin/sh
# nvme, xhci, virtio and vmxnet3 work with MSI-X, each in a guest of its own, also after rebinds and a hot replug.
#: first
#: suite bookworm
#: device nvme,serial=bulkhead,drive=d0,addr=5
#: device qemu-xhci,id=xhci1,addr=6
#: device usb-storage,bus=xhci1.0,drive=d1
#: device virtio-net-pci,netdev=n0,addr=7,iommu_platform=on,disable-legacy=on
#: device vmxnet3,netdev=n1,addr=9
#: timeout 900
. /rig/scenarios/lib.sh

dmesg -c >/dev/null
device nvme 05.0 "msi-x 2" /dev/nvme0n1 nvme
device xhci 06.0 "msi-x 2" /dev/sda xhci-pci usb-storage sd_mod
device virtio 07.0 "msi-x 3" network virtio_net virtio_pci
device vmxnet3 09.0 "msi-x 3" network vmxnet3
same_in_dom0 nvme /dev/nvme0n1 nvme
same_in_dom0 xhci /dev/sda xhci-pci usb-storage sd_mod
equal "complaints in dom0" "" "$(complaints)"
success
