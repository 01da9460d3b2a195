//! Frames for smoltcp. A frame is copied before smoltcp sees it: the backend cannot change it any more.

use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// Most bytes of a frame: payload, addresses and type, and a VLAN's tag.
pub const FRAME_MAX: usize = 1518;
/// Most bytes of a frame that the stub sends.
const TRANSMIT_MAX: usize = 1514;

/// A network device, one frame at a time.
pub trait Frames {
    /// Copies the next frame; returns its length, or `None` if there is none.
    fn receive(&mut self, into: &mut [u8; FRAME_MAX]) -> Option<usize>;
    /// True if [`Self::transmit`] has room.
    fn can_transmit(&mut self) -> bool;
    /// Sends a frame, or drops it where there is no room.
    fn transmit(&mut self, frame: &[u8]);
    /// True while the other end has not taken all frames.
    fn is_transmitting(&mut self) -> bool;
}

/// Memory for one frame in each direction.
#[derive(Debug)]
pub struct Buffers {
    receive: [u8; FRAME_MAX],
    transmit: [u8; TRANSMIT_MAX],
}

impl Default for Buffers {
    fn default() -> Self {
        Self {
            receive: [0; FRAME_MAX],
            transmit: [0; TRANSMIT_MAX],
        }
    }
}

/// smoltcp's view of [`Frames`].
pub struct Device<'a> {
    /// The device.
    pub frames: &'a mut dyn Frames,
    /// Where frames are built and read.
    pub buffers: &'a mut Buffers,
}

/// A frame that was received.
pub struct Received<'a>(&'a [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Room for a frame.
pub struct Room<'a> {
    frames: &'a mut dyn Frames,
    buffer: &'a mut [u8; TRANSMIT_MAX],
}

impl phy::TxToken for Room<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        // smoltcp keeps to the capabilities.
        let frame = &mut self.buffer[..length];
        // Nothing of an earlier frame goes out, whatever smoltcp leaves unwritten.
        frame.fill(0);
        let result = write(frame);
        self.frames.transmit(frame);
        result
    }
}

impl phy::Device for Device<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Room<'a>
    where
        Self: 'a;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Room<'_>)> {
        // A frame that cannot be answered waits.
        if !self.frames.can_transmit() {
            return None;
        }
        let length = self.frames.receive(&mut self.buffers.receive)?;
        let room = Room {
            frames: self.frames,
            buffer: &mut self.buffers.transmit,
        };
        Some((Received(&self.buffers.receive[..length]), room))
    }

    fn transmit(&mut self, _: Instant) -> Option<Room<'_>> {
        self.frames.can_transmit().then_some(Room {
            frames: self.frames,
            buffer: &mut self.buffers.transmit,
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = TRANSMIT_MAX;
        // Fewer than the frames that the device takes at once.
        capabilities.max_burst_size = Some(4);
        capabilities
    }
}

/// No device: smoltcp asks for the capabilities before there is a connection.
pub struct NoFrames;

impl Frames for NoFrames {
    fn receive(&mut self, _: &mut [u8; FRAME_MAX]) -> Option<usize> {
        None
    }

    fn can_transmit(&mut self) -> bool {
        false
    }

    fn transmit(&mut self, _: &[u8]) {}

    fn is_transmitting(&mut self) -> bool {
        false
    }
}
