//! Evidence on its way between machines and verifiers, and what follows from what this node's verifier says of others.
//! Neither a question nor an answer is looked at here: both ends are attestation services.

use std::rc::Rc;
use std::time::Duration;

use distos_abi::{Fault, HolderKey, NodeId};
use distos_rpc::fault_of;
use distos_schemas::attestation_capnp;
use distos_schemas::network_capnp::{answered, judgement, question};

use crate::TRACE;
use crate::life::{Bound, Mark};
use crate::mesh::Member;
use crate::questions::{ANSWER_WAIT, Answer, MAX_WAITING, Posed, check_answer, check_question};
use crate::server::NetworkService;
use crate::standing::{Judgement, Standing};
use crate::state::{Judged, State};

/// How long another node's machine may take: as long as its question waits there, and the way.
const ASK_WAIT: Duration = ANSWER_WAIT.saturating_add(Duration::from_secs(2));
/// Judgements in one call: of every node that is let in, and more.
const MAX_JUDGEMENTS: u32 = 8192;
/// Changes that are told one by one.
const MAX_REPORTS: usize = 16;

/// The answers to questions that were given out, each by its number.
pub(crate) fn read_answers(
    list: capnp::struct_list::Reader<'_, answered::Owned>,
) -> Result<Vec<(u64, Answer)>, Fault> {
    if list.len() > MAX_WAITING as u32 {
        return Err(Fault::malformed("so many questions were not asked"));
    }
    let read = |one: answered::Reader<'_>| -> capnp::Result<_> {
        let answer = match one.get_fault()?.to_str()? {
            "" => {
                let answer = one.get_answer()?;
                check_answer(answer).map(|()| answer.to_vec())
            }
            line => {
                let foreign = || Fault::internal("this node's attestation service has failed");
                Err(Fault::from_wire(line).unwrap_or_else(foreign))
            }
        };
        Ok((one.get_id(), answer))
    };
    list.iter().map(|one| read(one).map_err(|e| fault_of(&e))).collect()
}

pub(crate) fn write_questions(
    posed: &[Posed],
    mut list: capnp::struct_list::Builder<'_, question::Owned>,
) {
    for (index, posed) in (0..).zip(posed) {
        let mut one = list.reborrow().get(index);
        one.set_id(posed.id);
        one.set_verifier(&posed.verifier.0);
        one.set_key(&posed.own.key.0);
        one.set_life(&posed.own.life);
        one.set_question(&posed.question);
    }
}

pub(crate) fn read_judgements(
    list: capnp::struct_list::Reader<'_, judgement::Owned>,
) -> Result<Vec<Judgement>, Fault> {
    if list.len() > MAX_JUDGEMENTS {
        return Err(Fault::malformed(format!("{MAX_JUDGEMENTS} judgements are enough")));
    }
    let faulty = |e: capnp::Error| fault_of(&e);
    let read = |one: judgement::Reader<'_>| -> Result<Judgement, Fault> {
        let standing = one.get_standing().map_err(|e| fault_of(&e.into()))?;
        let standing = match standing {
            attestation_capnp::Standing::Fresh => Standing::Fresh,
            attestation_capnp::Standing::Stale => Standing::Stale,
            attestation_capnp::Standing::Expired => Standing::Expired,
            attestation_capnp::Standing::Failed => Standing::Failed,
        };
        let reason = one.get_reason().map_err(faulty)?.to_str();
        let key = one.get_key().map_err(faulty)?;
        let bound = match key {
            [] => None,
            key => Some(Bound {
                key: HolderKey::try_from(key)?,
                life: read_life(one.get_life().map_err(faulty)?)?,
            }),
        };
        Ok(Judgement {
            node: NodeId::try_from(one.get_node().map_err(faulty)?)?,
            standing,
            until_s: one.get_until_s(),
            epoch: one.get_epoch(),
            reason: reason.map_err(|e| fault_of(&e.into()))?.to_owned(),
            bound,
        })
    };
    list.iter().map(read).collect()
}

fn read_life(life: &[u8]) -> Result<Mark, Fault> {
    life.try_into().map_err(|_| Fault::malformed("what stands for a life has 32 bytes"))
}

impl NetworkService {
    /// Asks another node's machine; what it answers, and for whom, as the handshake has shown and that one has said.
    ///
    /// # Errors
    /// [`Fault::NotFound`] if this node lets no such node in, or does not know where it is; [`Fault::Unavailable`] if it is
    /// not reached or does not answer in time; [`Fault::Malformed`] if question or answer are too long; and as it says.
    pub(crate) async fn ask_machine(
        &self,
        node: NodeId,
        question: &[u8],
    ) -> Result<(Vec<u8>, Bound), Fault> {
        check_question(question)?;
        self.with_link(node, ASK_WAIT, async |link: &Member| {
            let mut request = link.member.evidence_request();
            request.get().set_question(question);
            let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
            let answered = answer.get().map_err(|e| fault_of(&e))?;
            let answer = answered.get_answer().map_err(|e| fault_of(&e))?;
            check_answer(answer)?;
            let life = read_life(answered.get_life().map_err(|e| fault_of(&e))?)?;
            Ok((answer.to_vec(), Bound { key: link.key, life }))
        })
        .await
    }

    /// A node's network service has come. If its evidence is bound to another key or another life, its verifier is to ask at once,
    /// over a new connection: the one there is may be from before it changed its key, or was started.
    pub(crate) fn note_bound(&self, node: NodeId, by: Bound) {
        if self.state.borrow_mut().asks_again(node, by, self.now_s()) {
            if let Some(member) = self.members.borrow_mut().remove(&node) {
                member.end();
            }
            self.again.send_if_modified(|again| again.insert(node));
        }
    }

    /// Goes by what this node's verifier says. It holds whether or not there is room on the disk: who has failed does not
    /// come back for that. `install` is called with what is known then, and returns what was before, unless whoever says
    /// so may do so no more.
    ///
    /// # Errors
    /// What it is if this is not on disk: it is tried again. A judgement that is from before another is told in the log, and
    /// the others count.
    pub(crate) fn judge(
        self: &Rc<Self>,
        judgements: Vec<Judgement>,
        install: impl FnOnce(State) -> Result<State, Fault>,
    ) -> Result<(), Fault> {
        let mut judged = Judged::default();
        let next = self.changed(|state| {
            judged = state.judge(&self.issuer_secret, judgements, self.now_us());
            Ok(())
        })?;
        install(next)?;
        if !judged.out.is_empty() || !judged.turned.is_empty() {
            self.tell();
        }
        self.tell_standings();
        for (node, why) in &judged.out {
            self.report(format!("node/{node} is no longer let in: its evidence has failed: {why}"));
        }
        self.clone().spread_all(judged.casts);
        if judged.is_new {
            self.is_unsaved.set(true);
            self.save_if_not()?;
        }
        // Of what was not kept this service knows nothing after its end, and would say it again.
        for (node, epoch) in judged.turned.iter().filter(|(node, _)| *node != self.vat.node()) {
            tracing::debug!(target: TRACE, at = self.vat.now_ms(), %node, epoch, "raise");
        }
        if let Some(fault) = judged.wrong {
            tracing::warn!(%fault, "a judgement does not count");
        }
        Ok(())
    }

    /// Tells the auditors whose standing has changed.
    pub(crate) fn tell_standings(&self) {
        let changes = self.state.borrow_mut().review_standings(self.now_s());
        for change in changes.iter().take(MAX_REPORTS) {
            let whose = match change.node == self.vat.node() {
                true => "this node's own evidence".to_owned(),
                false => format!("node/{}'s evidence", change.node),
            };
            self.report(match change.reason.as_str() {
                "" => format!("{whose} is {}", change.standing),
                why => format!("{whose} is {}: {why}", change.standing),
            });
        }
        if let Some(more @ 1..) = changes.len().checked_sub(MAX_REPORTS) {
            self.report(format!("the standing of {more} more nodes has changed"));
        }
    }
}
