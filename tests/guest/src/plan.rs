//! All requests to a backend, in order: the same in the guest and in the program that compares the answers.

use crate::case::cases;
use crate::op::Op;
use crate::random::Random;
use crate::shape::Shape;
use crate::step::Step;
use alloc::vec::Vec;

/// The parameters of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The functions.
    pub shapes: Vec<Shape>,
    /// Seed of the random requests.
    pub seed: u64,
    /// Number of random requests.
    pub count: usize,
}

/// Name of the random part.
pub const RANDOM: &str = "at random";

impl Plan {
    /// The steps, each with the name of its case and the function that the case is about, if it is about one.
    pub fn steps(&self) -> impl Iterator<Item = (&'static str, Option<Shape>, Step)> {
        let named = self.shapes.iter().flat_map(|&shape| {
            cases(&shape).into_iter().flat_map(move |case| {
                case.steps
                    .into_iter()
                    .map(move |step| (case.name, Some(shape), step))
            })
        });
        let mut random = Random::new(&self.shapes, self.seed);
        let mut quiet = None;
        let mut left = self.count;
        let at_random = core::iter::from_fn(move || {
            if left > 0 {
                left -= 1;
                return random.next();
            }
            // MSI and MSI-X are turned off at the end, so that every plan leaves the functions as they were.
            quiet.get_or_insert_with(|| random.quiet()).pop()
        });
        named.chain(at_random.map(|op| (RANDOM, None, Step::Op(op))))
    }

    /// The requests among the steps.
    pub fn ops(&self) -> impl Iterator<Item = (&'static str, Option<Shape>, Op)> {
        self.steps().filter_map(|(name, shape, step)| match step {
            Step::Op(op) => Some((name, shape, op)),
            Step::Ask(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shape::tests::FULL;
    use xenbus::pciif::Command;

    #[test]
    fn a_plan_has_the_cases_of_each_function_then_as_many_random_requests_as_wanted() {
        let plan = Plan {
            shapes: Vec::from([FULL, Shape { devfn: 8, ..FULL }]),
            seed: 1,
            count: 1000,
        };
        let random: Vec<Op> = plan
            .ops()
            .filter(|(name, ..)| *name == RANDOM)
            .map(|(.., op)| op)
            .collect();
        let (asked, quiet) = random.split_at(1000);
        assert!(asked.len() == 1000 && quiet.len() <= 2);
        let off = |op: &Op| matches!(op.known_command(), Command::DisableMsi | Command::DisableMsix);
        assert!(quiet.iter().all(off));
        let cases = plan.ops().count() - random.len();
        assert!(cases > 600, "{cases}");
    }
}
