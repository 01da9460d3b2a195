//! Answers on their way to dom0: words in nodes below our home, from where dom0 reads them.

use crate::frontend::Failure;
use alloc::format;
use alloc::string::String;
use core::fmt::{Display, Write as _};
use xenbus::client::{Client, Store, Transport};

/// Bytes of a node's value. The request that writes it must fit into xenstore's ring of 1,024 bytes.
const PIECE: usize = 900;

/// Words for the nodes `PATH/0`, `PATH/1`, and so on. `PATH/pieces` has the number of these nodes.
#[derive(Debug)]
pub struct Recorder {
    path: &'static str,
    piece: String,
    pieces: usize,
}

impl Recorder {
    /// Begins a recording.
    pub fn new(path: &'static str) -> Self {
        Self {
            path,
            piece: String::with_capacity(PIECE + 32),
            pieces: 0,
        }
    }

    /// Adds a word, which holds no blank.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn push<T: Transport>(&mut self, client: &mut Client<T>, word: &impl Display) -> Result<(), Failure> {
        // Writing to a `String` cannot fail.
        let _ = write!(self.piece, "{word} ");
        if self.piece.len() < PIECE {
            return Ok(());
        }
        self.flush(client)
    }

    /// Ends the recording; returns the number of its pieces.
    ///
    /// # Errors
    /// [`Failure::Store`].
    pub fn finish<T: Transport>(mut self, client: &mut Client<T>) -> Result<usize, Failure> {
        self.flush(client)?;
        client.write(&format!("{}/pieces", self.path), &format!("{}", self.pieces))?;
        Ok(self.pieces)
    }

    fn flush<T: Transport>(&mut self, client: &mut Client<T>) -> Result<(), Failure> {
        client.write(&format!("{}/{}", self.path, self.pieces), self.piece.trim_end())?;
        self.pieces += 1;
        self.piece.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use xenbus::model::Xenstored;

    #[test]
    fn all_words_arrive_in_order_and_no_node_is_too_large() {
        let xenstored = Xenstored::new();
        let mut client = Client::new(xenstored.connect(0));
        let mut recorder = Recorder::new("/data");
        for word in 0..3000 {
            recorder.push(&mut client, &word).unwrap();
        }
        let pieces = recorder.finish(&mut client).unwrap();
        let mut words: Vec<u32> = Vec::new();
        for piece in 0..pieces {
            let text = client.read(&format!("/data/{piece}")).unwrap();
            assert!(text.len() < 1000 - 16);
            words.extend(text.split(' ').map(|word| word.parse::<u32>().unwrap()));
        }
        assert!(words.into_iter().eq(0..3000));
    }
}
