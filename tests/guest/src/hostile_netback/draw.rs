//! Random responses, right and wrong. For a wrong one the frontend must give up, and for no other.

use super::rings::NetResponse;
use fastrand::Rng;

/// One response in so many is wrong, so that a connection lives for a while.
const ONE_IN: u32 = 1000;
/// Numbers of requests that no frontend of a few pages has.
const STRANGE_ID: core::ops::Range<u16> = 64..u16::MAX;

/// True if the next response is to be wrong.
pub fn is_wrong(random: &mut Rng) -> bool {
    random.u32(..ONE_IN) == 0
}

/// A response to the request for a frame with this number, as the protocol allows it.
pub fn right(random: &mut Rng, id: u16) -> NetResponse {
    let offset = random.u16(..2500);
    // Data validated, checksum blank, both, or most often none.
    let flags = if random.u8(..4) == 0 { random.u16(..4) } else { 0 };
    let status = match random.u8(..16) {
        0 => random.i16(..0),
        1 => [14, 1518][random.usize(..2)],
        _ => random.i16(14..1519),
    };
    NetResponse {
        id,
        offset,
        flags,
        status,
    }
}

/// A response that no frontend without options may accept.
pub fn wrong(random: &mut Rng, id: u16) -> NetResponse {
    let response = NetResponse::frame(id, random.i16(14..1519));
    match random.u8(..5) {
        0 => NetResponse {
            id: random.u16(STRANGE_ID),
            ..response
        },
        1 => NetResponse {
            flags: 1 << random.u32(2..16),
            ..response
        },
        2 => NetResponse {
            status: random.i16(0..14),
            ..response
        },
        3 => NetResponse {
            status: random.i16(1519..),
            ..response
        },
        _ => NetResponse {
            offset: random.u16(4096 - 13..),
            ..response
        },
    }
}

/// What became of a frame of the frontend's, as the protocol allows it.
pub fn right_status(random: &mut Rng) -> i16 {
    match random.u8(..8) {
        0 => random.i16(..0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_allowed(response: NetResponse) -> bool {
        let end = i32::from(response.offset) + i32::from(response.status);
        response.id < 64
            && response.flags < 4
            && (response.status < 0 || (14..=1518).contains(&response.status) && end <= 4096)
    }

    #[test]
    fn right_responses_are_allowed_and_wrong_ones_are_not() {
        let random = &mut Rng::with_seed(1);
        for id in (0..64).cycle().take(100_000) {
            let response = right(random, id);
            assert!(is_allowed(response) && response.id == id, "{response:?}");
            let response = wrong(random, id);
            assert!(!is_allowed(response), "{response:?}");
            assert!(right_status(random) <= 0);
        }
    }

    #[test]
    fn a_seed_stands_for_its_responses() {
        let draw = |seed| {
            let random = &mut Rng::with_seed(seed);
            [0; 100].map(|_| (is_wrong(random), right(random, 3), wrong(random, 3)))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn about_one_response_in_a_thousand_is_wrong() {
        let random = &mut Rng::with_seed(2);
        let count = (0..1_000_000).filter(|_| is_wrong(random)).count();
        assert!((800..1200).contains(&count), "{count}");
    }
}
