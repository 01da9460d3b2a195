//! Names of the xenstore nodes that Bulkhead reads and writes. Their values: `docs/protocol.md`.

use alloc::format;
use alloc::string::String;

/// A kind of xenbus device, as its directories name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceType {
    /// First hop, guest to stub: what Linux's pcifront looks for.
    Pci,
    /// Second hop, stub to dom0's service. Not `pci`, because dom0's kernel claims every backend of that type.
    Bulkhead,
}

impl DeviceType {
    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pci => "pci",
            Self::Bulkhead => "bulkhead",
        }
    }

    /// Directory of all backends of this type in domain `backend`: one child for each frontend's domid.
    pub fn backends(self, backend: u16) -> String {
        format!("{}/backend/{}", home(backend), self.name())
    }

    /// Directory of all frontends of this type in domain `frontend`.
    pub fn frontends(self, frontend: u16) -> String {
        format!("{}/device/{}", home(frontend), self.name())
    }
}

/// Home of a domain.
pub fn home(domid: u16) -> String {
    format!("/local/domain/{domid}")
}

/// One xenbus device, number 0 of its type: the pair of directories where its two ends meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    device_type: DeviceType,
    backend: u16,
    frontend: u16,
}

impl Device {
    /// The first hop: `guest`'s pcifront and its stub's engine.
    pub const fn first_hop(stub: u16, guest: u16) -> Self {
        Self {
            device_type: DeviceType::Pci,
            backend: stub,
            frontend: guest,
        }
    }

    /// The second hop: the stub and the service in dom0.
    pub const fn second_hop(stub: u16) -> Self {
        Self {
            device_type: DeviceType::Bulkhead,
            backend: 0,
            frontend: stub,
        }
    }

    /// Domain of the backend.
    pub const fn backend(self) -> u16 {
        self.backend
    }

    /// Domain of the frontend.
    pub const fn frontend(self) -> u16 {
        self.frontend
    }

    /// Directory of the backend, owned by its domain.
    pub fn backend_dir(self) -> String {
        // Number 0 of the frontend's devices: one pciif connection carries all functions of a guest.
        format!("{}/{}/0", self.device_type.backends(self.backend), self.frontend)
    }

    /// Directory of the frontend, owned by its domain.
    pub fn frontend_dir(self) -> String {
        format!("{}/0", self.device_type.frontends(self.frontend))
    }

    /// A node of the backend; `key` is one of [`key`], or a [`Numbered::at`].
    pub fn backend_node(self, key: &str) -> String {
        format!("{}/{key}", self.backend_dir())
    }

    /// A node that the backend has for each device, or for each root.
    // One copy of it in an image: it has many callers.
    #[inline(never)]
    pub fn numbered_node(self, key: Numbered, index: usize) -> String {
        format!("{}/{}-{index}", self.backend_dir(), key.stem())
    }

    /// A node of the frontend.
    pub fn frontend_node(self, key: &str) -> String {
        format!("{}/{key}", self.frontend_dir())
    }
}

/// Keys of the nodes that a device's directory has once.
pub mod key {
    /// Either end: its xenbus state.
    pub const STATE: &str = "state";
    /// Backend: path of the frontend's directory.
    pub const FRONTEND: &str = "frontend";
    /// Backend: domid of the frontend.
    pub const FRONTEND_ID: &str = "frontend-id";
    /// Backend: `1` while the toolstack wants the device.
    pub const ONLINE: &str = "online";
    /// Backend: name of the frontend's domain.
    pub const DOMAIN: &str = "domain";
    /// Backend: number of devices, decimal.
    pub const NUM_DEVS: &str = "num_devs";
    /// Backend, first hop: number of PCI roots, decimal.
    pub const ROOT_NUM: &str = "root_num";
    /// Backend, second hop: domid of the guest that the stub serves.
    pub const GUEST: &str = "guest";
    /// Backend, second hop: how the guest's devices are addressed, a [`crate::device::SlotMode`].
    pub const SLOTS: &str = "slots";
    /// Backend, second hop: the [handover block](crate::handover_block) of the stub domain before this one.
    pub const HANDOVER_BLOCK: &str = "survivor";
    /// Frontend: path of the backend's directory.
    pub const BACKEND: &str = "backend";
    /// Frontend: domid of the backend.
    pub const BACKEND_ID: &str = "backend-id";
    /// Frontend: grant reference of the shared page, decimal.
    pub const PCI_OP_REF: &str = "pci-op-ref";
    /// Frontend: its unbound event channel port, decimal.
    pub const EVENT_CHANNEL: &str = "event-channel";
    /// Frontend: the protocol's version, [`crate::pciif::MAGIC`].
    pub const MAGIC: &str = "magic";
}

/// Keys of the nodes that a backend's directory has once for each device, or for each root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Numbered {
    /// Both hops: real address, `SSSS:BB:DD.F`.
    Device,
    /// First hop: the same, as the toolstack's key of the device.
    Key,
    /// First hop: state of this one device.
    State,
    /// First hop: address on the guest's bus, `SSSS:BB:DD.FF`.
    VirtualDevice,
    /// First hop: why this one device is refused.
    Error,
    /// First hop: segment and bus of a PCI root, `SSSS:BB`.
    Root,
    /// Second hop: vendor and device id, a [`crate::device::Ids`].
    Ids,
    /// Second hop: machine frame number of the ECAM page, hex.
    Ecam,
    /// Second hop: the base address registers, a [`crate::device::Bars`].
    Bars,
    /// Second hop: GSI of the INTx line, decimal; 0 is none.
    Irq,
    /// Second hop: `1` if INTx is offered to the guest, else `0`.
    Intx,
    /// Second hop: `1` if writes to registers that no table names go to the device.
    Permissive,
    /// Second hop: the registers that an administrator lets the guest write, [`crate::device::Quirks`].
    Quirks,
    /// Second hop: `0` if MSI and MSI-X are refused.
    Msi,
    /// Second hop: `1` if it is an SR-IOV virtual function.
    Virtual,
}

impl Numbered {
    /// The key with number `index`, such as `dev-3`.
    pub fn at(self, index: usize) -> String {
        format!("{}-{index}", self.stem())
    }

    const fn stem(self) -> &'static str {
        match self {
            Self::Device => "dev",
            Self::Key => "key",
            Self::State => "state",
            Self::VirtualDevice => "vdev",
            Self::Error => "error",
            Self::Root => "root",
            Self::Ids => "ids",
            Self::Ecam => "ecam",
            Self::Bars => "bars",
            Self::Irq => "irq",
            Self::Intx => "intx",
            Self::Permissive => "permissive",
            Self::Quirks => "quirks",
            Self::Msi => "msi",
            Self::Virtual => "virtual",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_hop_lies_between_the_guest_and_its_stub() {
        let device = Device::first_hop(4, 3);
        assert_eq!(device.backend_dir(), "/local/domain/4/backend/pci/3/0");
        assert_eq!(device.frontend_dir(), "/local/domain/3/device/pci/0");
        assert_eq!((device.backend(), device.frontend()), (4, 3));
    }

    #[test]
    fn the_second_hop_lies_between_the_stub_and_dom0() {
        let device = Device::second_hop(4);
        assert_eq!(device.backend_dir(), "/local/domain/0/backend/bulkhead/4/0");
        assert_eq!(device.frontend_dir(), "/local/domain/4/device/bulkhead/0");
        assert_eq!((device.backend(), device.frontend()), (0, 4));
    }

    #[test]
    fn keys_stand_below_their_directory() {
        let device = Device::second_hop(4);
        assert_eq!(
            device.backend_node(&Numbered::Ids.at(0)),
            "/local/domain/0/backend/bulkhead/4/0/ids-0"
        );
        assert_eq!(
            device.frontend_node(key::PCI_OP_REF),
            "/local/domain/4/device/bulkhead/0/pci-op-ref"
        );
    }

    #[test]
    fn numbered_keys_are_spelt_as_in_the_protocol() {
        use Numbered::*;
        let keys = [
            Device,
            Key,
            State,
            VirtualDevice,
            Error,
            Root,
            Ids,
            Ecam,
            Bars,
            Irq,
            Intx,
            Permissive,
            Quirks,
            Msi,
            Virtual,
        ]
        .map(|key| key.at(12));
        assert_eq!(
            keys,
            [
                "dev-12",
                "key-12",
                "state-12",
                "vdev-12",
                "error-12",
                "root-12",
                "ids-12",
                "ecam-12",
                "bars-12",
                "irq-12",
                "intx-12",
                "permissive-12",
                "quirks-12",
                "msi-12",
                "virtual-12"
            ]
        );
    }

    #[test]
    fn the_directories_of_a_type_are_what_one_watches() {
        assert_eq!(
            DeviceType::Bulkhead.backends(0),
            "/local/domain/0/backend/bulkhead"
        );
        assert_eq!(DeviceType::Pci.frontends(7), "/local/domain/7/device/pci");
    }
}
