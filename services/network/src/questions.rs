//! What verifiers of other nodes ask this one's machine: kept until the attestation service, which alone answers, has
//! taken it and answered, or whoever asks waits no more.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use distos_abi::{Fault, NodeId};
use tokio::sync::{oneshot, watch};

use crate::life::Bound;

/// The longest question, and the longest answer.
pub(crate) const MAX_QUESTION_BYTES: usize = 16 << 10;
pub(crate) const MAX_ANSWER_BYTES: usize = 1 << 20;
/// Questions that wait, of one node and of all.
const MAX_OF_NODE: usize = 4;
pub(crate) const MAX_WAITING: usize = 64;
/// How long one waits for its answer.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long whoever answers waits for a question.
pub(crate) const QUESTION_WAIT: Duration = Duration::from_secs(5);

/// Whether a question may be so long.
pub(crate) fn check_question(question: &[u8]) -> Result<(), Fault> {
    match question.len() <= MAX_QUESTION_BYTES {
        true => Ok(()),
        false => {
            Err(Fault::malformed(format!("a question has {MAX_QUESTION_BYTES} bytes at most")))
        }
    }
}

/// Whether an answer may be so long.
pub(crate) fn check_answer(answer: &[u8]) -> Result<(), Fault> {
    match answer.len() <= MAX_ANSWER_BYTES {
        true => Ok(()),
        false => Err(Fault::malformed(format!("an answer has {MAX_ANSWER_BYTES} bytes at most"))),
    }
}

/// What this node's machine says, or why it says nothing.
pub(crate) type Answer = Result<Vec<u8>, Fault>;

/// What another node's verifier asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Posed {
    pub(crate) id: u64,
    /// The node that asks.
    pub(crate) verifier: NodeId,
    /// This service, as it is at the other end of the connection over which it does.
    pub(crate) own: Bound,
    pub(crate) question: Vec<u8>,
}

struct Waiting {
    verifier: NodeId,
    /// Until it is given out.
    posed: Option<Posed>,
    answer: oneshot::Sender<Answer>,
}

/// The questions that wait.
pub(crate) struct Questions {
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    next: RefCell<u64>,
    more: watch::Sender<()>,
}

impl Questions {
    /// None. They are numbered from `first` on: whoever answers may do so after this service was started again, and is not
    /// to hit another question.
    pub(crate) fn new(first: u64) -> Questions {
        Questions {
            waiting: RefCell::default(),
            next: RefCell::new(first),
            more: watch::Sender::new(()),
        }
    }

    /// Asks, and waits for the answer. Whoever drops this gives back its place.
    ///
    /// # Errors
    /// [`Fault::Malformed`] if it is too long; [`Fault::Unavailable`] if too many wait, or nobody has answered within
    /// `wait`; and what is said in the place of an answer.
    pub(crate) async fn ask(
        &self,
        verifier: NodeId,
        own: Bound,
        question: &[u8],
        wait: Duration,
    ) -> Answer {
        check_question(question)?;
        let (place, answer) = self.pose(verifier, own, question)?;
        let answered = tokio::time::timeout(wait, answer).await;
        drop(place);
        match answered {
            Ok(Ok(answer)) => answer,
            _ => Err(Fault::unavailable(1000, "this node's attestation service has not answered")),
        }
    }

    fn pose(
        &self,
        verifier: NodeId,
        own: Bound,
        question: &[u8],
    ) -> Result<(Place<'_>, oneshot::Receiver<Answer>), Fault> {
        let mut waiting = self.waiting.borrow_mut();
        let of_it = waiting.values().filter(|one| one.verifier == verifier).count();
        if of_it >= MAX_OF_NODE {
            let why = format!("{MAX_OF_NODE} questions of this node wait for an answer");
            return Err(Fault::unavailable(1000, why));
        }
        if waiting.len() >= MAX_WAITING {
            let why = format!("{MAX_WAITING} questions wait for an answer");
            return Err(Fault::unavailable(1000, why));
        }
        let mut next = self.next.borrow_mut();
        let id = *next;
        *next = next.wrapping_add(1);
        let (answer, answered) = oneshot::channel();
        let posed = Some(Posed { id, verifier, own, question: question.to_vec() });
        waiting.insert(id, Waiting { verifier, posed, answer });
        self.more.send_replace(());
        Ok((Place { questions: self, id }, answered))
    }

    /// Those that were not given out, once there are any; none if there are none within `wait`.
    pub(crate) async fn take(&self, wait: Duration) -> Vec<Posed> {
        let mut more = self.more.subscribe();
        let waits = |_: &()| self.waiting.borrow().values().any(|one| one.posed.is_some());
        // The sender lives as long as this.
        let _ = tokio::time::timeout(wait, more.wait_for(waits)).await;
        self.waiting.borrow_mut().values_mut().filter_map(|one| one.posed.take()).collect()
    }

    /// Answers a question that was given out. Of one that is not, or that nobody waits for any more, nothing is known.
    pub(crate) fn answer(&self, id: u64, answer: Answer) {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.get(&id).is_some_and(|one| one.posed.is_none())
            && let Some(one) = waiting.remove(&id)
        {
            let answer = answer.and_then(|answer| check_answer(&answer).map(|()| answer));
            // Whoever asked may have gone this very moment.
            let _ = one.answer.send(answer);
        }
    }
}

/// A question's place among those that wait.
struct Place<'a> {
    questions: &'a Questions,
    id: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.questions.waiting.borrow_mut().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use distos_abi::HolderKey;
    use futures::FutureExt as _;

    use super::*;

    const VERIFIER: NodeId = NodeId([1; 32]);
    const OWN: Bound = Bound { key: HolderKey([2; 32]), life: [3; 32] };
    const SOON: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn a_question_is_given_out_once_and_answered_to_whoever_asked_it() {
        run(async {
            let questions = Questions::new(7);
            let asked = questions.ask(VERIFIER, OWN, b"who are you", LONG);
            let answering = async {
                let posed = questions.take(LONG).await;
                let question = b"who are you".to_vec();
                assert_eq!(posed, [Posed { id: 7, verifier: VERIFIER, own: OWN, question }]);
                assert_eq!(questions.take(SOON).await, [], "given out twice");
                questions.answer(8, Ok(b"somebody else".to_vec()));
                questions.answer(7, Ok(b"me".to_vec()));
                questions.answer(7, Ok(b"me, again".to_vec()));
            };
            let (answer, ()) = futures::join!(asked, answering);
            assert_eq!(answer.unwrap(), b"me");
        });
    }

    #[test]
    fn nobody_answers_what_was_not_given_out() {
        run(async {
            let questions = Questions::new(0);
            let mut asked = Box::pin(questions.ask(VERIFIER, OWN, b"", SOON));
            assert!(asked.as_mut().now_or_never().is_none());
            questions.answer(0, Ok(b"guessed".to_vec()));
            assert!(matches!(asked.await, Err(Fault::Unavailable { .. })));
        });
    }

    #[test]
    fn what_cannot_be_answered_is_said_so_to_whoever_asked() {
        run(async {
            let questions = Questions::new(u64::MAX);
            let answering = async {
                for answer in [
                    Err(Fault::StaleAttestation("no TPM".into())),
                    Ok(vec![0; MAX_ANSWER_BYTES + 1]),
                    Ok(vec![0; MAX_ANSWER_BYTES]),
                ] {
                    let posed = questions.take(LONG).await;
                    questions.answer(posed[0].id, answer);
                }
            };
            let asking = async {
                let mut answers = Vec::new();
                for _ in 0..3 {
                    answers.push(questions.ask(VERIFIER, OWN, b"", LONG).await);
                }
                answers
            };
            let (answers, ()) = futures::join!(asking, answering);
            assert_eq!(answers[0], Err(Fault::StaleAttestation("no TPM".into())));
            assert!(matches!(answers[1], Err(Fault::Malformed(_))), "an answer without end");
            assert_eq!(answers[2].as_ref().map(Vec::len), Ok(MAX_ANSWER_BYTES));
            let long = vec![0; MAX_QUESTION_BYTES + 1];
            let refused = questions.ask(VERIFIER, OWN, &long, LONG).await;
            assert!(matches!(refused, Err(Fault::Malformed(_))));
        });
    }

    #[test]
    fn who_asks_without_end_leaves_room_for_others_and_who_goes_gives_back_its_place() {
        run(async {
            let questions = Questions::new(0);
            let node = |n: usize| NodeId([n as u8; 32]);
            let mut asking = Vec::new();
            for n in 0..MAX_WAITING {
                let asked = questions.ask(node(n / MAX_OF_NODE), OWN, b"", LONG);
                asking.push(Box::pin(asked));
                assert!(asking[n].as_mut().now_or_never().is_none(), "question {n} waits");
                if n == MAX_OF_NODE - 1 {
                    let refused = questions.ask(node(0), OWN, b"", LONG).now_or_never();
                    assert!(matches!(refused, Some(Err(Fault::Unavailable { .. }))));
                }
            }
            let other = questions.ask(node(99), OWN, b"", LONG).now_or_never();
            assert!(matches!(other, Some(Err(Fault::Unavailable { .. }))), "all places are taken");
            asking.pop();
            assert!(questions.ask(node(99), OWN, b"", LONG).now_or_never().is_none());
            assert_eq!(questions.take(SOON).await.len(), MAX_WAITING - 1, "nobody's is given out");
            drop(asking);
            assert!(questions.waiting.borrow().is_empty());
        });
    }

    #[test]
    fn whoever_answers_is_not_kept_waiting_when_nobody_asks() {
        run(async {
            assert_eq!(Questions::new(0).take(SOON).await, []);
        });
    }
}
