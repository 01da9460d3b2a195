//! What the test guest recorded, as a file of words.

use anyhow::{Context as _, Result, bail, ensure};
use test_guest::answer::Answer;
use test_guest::plan::Plan;

/// The answers of one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRecording {
    /// What was asked.
    pub plan: Plan,
    /// In the order of the requests.
    pub answers: Vec<Answer>,
}

impl RequestRecording {
    /// Reads `seed=N count=N shape=…` and the answers, separated by blanks of any kind.
    ///
    /// # Errors
    /// A word that is none of these, or another number of answers than the plan has requests.
    pub fn parse(text: &str) -> Result<Self> {
        let mut plan = Plan {
            shapes: Vec::new(),
            seed: 0,
            count: 0,
        };
        let mut answers = Vec::new();
        for word in text.split_ascii_whitespace() {
            let Some((key, value)) = word.split_once('=') else {
                answers.push(word.parse().with_context(|| format!("{word:?}"))?);
                continue;
            };
            match key {
                "seed" => plan.seed = value.parse().with_context(|| word.to_owned())?,
                "count" => plan.count = value.parse().with_context(|| word.to_owned())?,
                "shape" => plan.shapes.push(value.parse().with_context(|| word.to_owned())?),
                _ => bail!("{word}: only seed, count and shape are known"),
            }
        }
        let requests = plan.ops().count();
        ensure!(
            answers.len() == requests,
            "{} answers to {requests} requests: it was cut",
            answers.len()
        );
        Ok(Self { plan, answers })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use test_guest::op::Op;

    /// A recording of two functions in which each request is answered by `answer`, in words.
    pub fn recording(mut answer: impl FnMut(&str, &Op) -> String) -> RequestRecording {
        let head = "seed=7 count=200 shape=0,200,208,160,5 shape=8,0,64,0,0";
        let plan = Plan {
            shapes: head
                .split(' ')
                .filter_map(|word| word.strip_prefix("shape=").map(|shape| shape.parse().unwrap()))
                .collect(),
            seed: 7,
            count: 200,
        };
        let words: Vec<String> = plan.ops().map(|(case, _, op)| answer(case, &op)).collect();
        RequestRecording::parse(&format!("{head}\n{}", words.join("\n"))).unwrap()
    }

    #[test]
    fn a_file_holds_plan_and_answers() {
        let recording = recording(|_, op| format!("0:{:x}", op.value));
        assert_eq!((recording.plan.seed, recording.plan.count), (7, 200));
        assert_eq!(recording.plan.shapes.len(), 2);
        for ((.., op), answer) in recording.plan.ops().zip(&recording.answers) {
            assert_eq!(answer.value(), op.value);
        }
    }

    #[test]
    fn a_file_that_was_cut_or_is_another_is_refused() {
        for (text, part) in [
            ("seed=7 count=2 shape=0,0,0,0,0 0:0", "cut"),
            ("seed=x", "seed=x"),
            ("size=4", "only seed"),
            ("sh: not found", "\"sh:\""),
        ] {
            let error = format!("{:#}", RequestRecording::parse(text).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }
}
