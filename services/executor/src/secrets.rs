//! The secrets of a job: lent to it by its owner, and drawn anew by each of its tasks, under a lease of the task's own that
//! is renewed while that runs and given back with it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use distos_abi::{Fault, NodeId, VatName};
use distos_delivery::{Content, Purpose, Recipient};
use distos_rpc::{Gift, Received, Vat, fault_of};
use distos_schemas::secrets_capnp::secret;
use distos_types::SecretBytes;
use tokio::time::Instant;

use crate::private::Secret;

/// Secrets of one job.
pub(crate) const MAX_SECRETS: u32 = 16;
/// The longest name of a file.
const MAX_FILE_BYTES: usize = 64;
/// How long it is not asked again after the broker did not answer.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How soon whoever got no secret may try again, in milliseconds.
const RETRY_MS: u64 = 1_000;
/// How long a task, which has a worker, waits for its secrets: the broker itself waits ten seconds for an account to be made.
const DRAW_WAIT: Duration = Duration::from_secs(30);
/// How long a job that is loaded waits for what it is lent.
const TAKE_WAIT: Duration = Duration::from_secs(10);
/// How long a task's end waits for its leases to be given back.
const RELEASE_WAIT: Duration = Duration::from_secs(2);
/// The shortest time between two renewals.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// A secret as a job names it: the file that its tasks find, and the gift by which it is read.
pub(crate) struct Named {
    pub(crate) file: String,
    pub(crate) gift: Gift,
}

/// Checks the names of a job's files. [`Fault::Malformed`] says which is wrong.
pub(crate) fn checked(secrets: Vec<Named>) -> Result<Vec<Named>, Fault> {
    for (at, Named { file, .. }) in secrets.iter().enumerate() {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_name = (1..=MAX_FILE_BYTES).contains(&file.len())
            && file.bytes().all(fits)
            && ![".", ".."].contains(&file.as_str());
        if !is_name {
            return Err(Fault::malformed(format!(
                "a secret's file is 1 to {MAX_FILE_BYTES} of a-z A-Z 0-9 . _ -"
            )));
        }
        if secrets[..at].iter().any(|other| other.file == *file) {
            return Err(Fault::malformed(format!("two secrets of a job would be file '{file}'")));
        }
    }
    Ok(secrets)
}

/// A secret that a job holds.
pub(crate) struct Lent {
    file: String,
    pub(crate) secret: Received<secret::Client>,
    name: String,
    node: NodeId,
    vat: VatName,
}

impl Lent {
    /// Takes a gift.
    ///
    /// # Errors
    /// As [`Vat::receive`]; and what the broker says, or that this is no secret.
    async fn take(vat: &Vat, named: Named) -> Result<Lent, Fault> {
        let Named { file, gift } = named;
        let secret: Received<secret::Client> = vat.receive(&gift).await?;
        let answer = secret.client.info_request().send().promise.await;
        let name = answer
            .and_then(|answer| Ok(answer.get()?.get_info()?.get_name()?.to_str()?.to_owned()));
        let name = name.map_err(|e| fault_of(&e))?;
        Ok(Lent { file, secret, name, node: gift.node.unwrap_or(vat.node()), vat: gift.vat })
    }

    /// As [`Lent::take`], of all of a job's.
    ///
    /// # Errors
    /// Also [`Fault::Unavailable`] if that takes too long: nobody loads a job by a broker that is silent.
    pub(crate) async fn take_all(vat: &Vat, named: Vec<Named>) -> Result<Vec<Rc<Lent>>, Fault> {
        let taken =
            futures::future::try_join_all(named.into_iter().map(|one| Lent::take(vat, one)));
        let lent = tokio::time::timeout(TAKE_WAIT, taken).await;
        let lent = lent.unwrap_or_else(|_| Err(silent("job")))?;
        Ok(lent.into_iter().map(Rc::new).collect())
    }

    /// Reads it, under a new lease.
    async fn draw(self: &Rc<Self>) -> Result<(Drawn, Secret), Fault> {
        // The library's first randomness takes its time, and what this job was lent is renewed meanwhile.
        let recipient = tokio::task::spawn_blocking(Recipient::new).await;
        let recipient = recipient.map_err(Fault::internal)??;
        let mut request = self.secret.client.get_request();
        request.get().init_to().set_key(&recipient.key().0);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        let answer = answer.get().map_err(|e| fault_of(&e))?;
        let (version, lease) = (answer.get_version(), answer.get_lease());
        // From here on there is a lease to give back.
        let drawn = Drawn {
            lent: Rc::clone(self),
            lease,
            until_ms: answer.get_until_ms(),
            given_back: Cell::new(false),
        };
        let content = Content::Reading { name: &self.name, version, lease };
        let purpose = Purpose::of_vat(self.node, &self.vat, content);
        let parcel = answer.get_parcel().map_err(|e| fault_of(&e))?;
        let plain = recipient.open(&purpose, parcel)?;
        let value = SecretBytes::fill(plain.len(), |place| {
            place.copy_from_slice(&plain);
            Ok::<(), Fault>(())
        })?;
        if let Some(why) = value.exposure() {
            // Nobody is to find in a swap file what was promised to stay in memory.
            return Err(Fault::unavailable(
                RETRY_MS,
                format!(
                    "no locked memory is left for secret '{}' ({why}): fewer or shorter secrets at the same time",
                    self.name
                ),
            ));
        }
        Ok((drawn, Secret { file: self.file.clone(), value }))
    }
}

/// Reads what a task of this job is to have, each under a new lease. One after the other: the key that one is sealed to takes
/// a locked page as well, until that is opened.
///
/// # Errors
/// What the broker says; [`Fault::Unavailable`] if it is silent, or if there is no locked memory for one. Leases that were
/// made are given back; one of which the broker has not told ends with what the job was given, or runs out.
pub(crate) async fn draw_all(lent: &[Rc<Lent>]) -> Result<(Vec<Drawn>, Vec<Secret>), Fault> {
    let drawing = async {
        let (mut drawn, mut files) = (Vec::new(), Vec::new());
        for one in lent {
            let (lease, file) = one.draw().await?;
            drawn.push(lease);
            files.push(file);
        }
        Ok::<_, Fault>((drawn, files))
    };
    tokio::time::timeout(DRAW_WAIT, drawing).await.unwrap_or_else(|_| Err(silent("task")))
}

/// Of a broker that does not answer while this waits.
fn silent(who: &str) -> Fault {
    Fault::unavailable(RETRY_MS, format!("the broker of this {who}'s secrets is silent"))
}

/// A lease of a task's on a secret of its job. Dropping it gives it back.
pub(crate) struct Drawn {
    lent: Rc<Lent>,
    lease: u64,
    until_ms: u64,
    given_back: Cell<bool>,
}

impl Drop for Drawn {
    fn drop(&mut self) {
        if !self.given_back.get() {
            tokio::task::spawn_local(release(Rc::clone(&self.lent), self.lease));
        }
    }
}

/// What is not given back ends with what the job was given.
async fn release(lent: Rc<Lent>, lease: u64) {
    let mut request = lent.secret.client.release_request();
    request.get().set_lease(lease);
    if let Err(error) = request.send().promise.await {
        tracing::debug!(%error, lease, "a lease was not given back");
    }
}

/// Gives back what a task has drawn, before anybody hears that it has ended: whoever waits for that may then leave, and what it
/// has given ends.
pub(crate) async fn give_back(drawn: Vec<Drawn>) {
    let released = drawn.iter().map(|drawn| {
        drawn.given_back.set(true);
        release(Rc::clone(&drawn.lent), drawn.lease)
    });
    // A broker that is away keeps nobody waiting for long.
    let _ = tokio::time::timeout(RELEASE_WAIT, futures::future::join_all(released)).await;
}

impl Drawn {
    /// Renews it for as long as that goes, and says why it does not.
    pub(crate) async fn lost(&self) -> Fault {
        let mut until_ms = self.until_ms;
        let mut is_renewed = true;
        let mut due = Instant::now() + pause(until_ms.saturating_sub(now_ms()), is_renewed);
        loop {
            if until_ms <= now_ms() {
                return Fault::Expired { at_ms: until_ms };
            }
            tokio::select! {
                watched = self.watched() => match watched {
                    // It says so every few seconds; when the lease is to be renewed does not change by that.
                    Ok(()) => {}
                    // The broker does not answer, or is gone: then what the job was given, and this lease with it, is over,
                    // and the job is told so. Until then the lease runs for as long as it says.
                    Err(Fault::Unavailable { .. }) => tokio::time::sleep(RETRY_PAUSE).await,
                    Err(fault) => return fault,
                },
                () = tokio::time::sleep_until(due) => {
                    let mut retry = None;
                    if is_renewed {
                        match self.renewed().await {
                            Ok(later_ms) => until_ms = later_ms,
                            // A certificate ends with its lease.
                            Err(Fault::Malformed(_)) => is_renewed = false,
                            Err(Fault::Unavailable { .. }) => retry = Some(RETRY_PAUSE),
                            Err(fault) => return fault,
                        }
                    }
                    let left_ms = until_ms.saturating_sub(now_ms());
                    due = Instant::now() + retry.unwrap_or_else(|| pause(left_ms, is_renewed));
                },
            }
        }
    }

    /// Waits until it has ended, for a while.
    async fn watched(&self) -> Result<(), Fault> {
        let mut request = self.lent.secret.client.watch_request();
        request.get().set_lease(self.lease);
        request.send().promise.await.map(drop).map_err(|e| fault_of(&e))
    }

    async fn renewed(&self) -> Result<u64, Fault> {
        let mut request = self.lent.secret.client.renew_request();
        request.get().set_lease(self.lease);
        let answer = request.send().promise.await.map_err(|e| fault_of(&e))?;
        answer.get().map(|answer| answer.get_until_ms()).map_err(|e| fault_of(&e))
    }
}

/// Resolves when one of these is over, with why.
pub(crate) async fn first_lost(drawn: &[Drawn]) -> Fault {
    if drawn.is_empty() {
        return std::future::pending().await;
    }
    let lost = drawn.iter().map(|drawn| Box::pin(drawn.lost()));
    futures::future::select_all(lost).await.0
}

/// How long nothing is to be done about a lease that runs for `left_ms` more: to its middle if it can be renewed, and else to
/// its end.
fn pause(left_ms: u64, is_renewed: bool) -> Duration {
    let share = if is_renewed { 2 } else { 1 };
    Duration::from_millis(left_ms / share).max(SHORTEST_PAUSE)
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked_files(files: &[&str]) -> Result<(), Fault> {
        let named = |file: &&str| Named {
            file: (*file).to_owned(),
            gift: Gift { ticket: vec![1], node: None, vat: VatName::new("secrets").unwrap() },
        };
        checked(files.iter().map(named).collect()).map(drop)
    }

    #[test]
    fn no_file_of_a_job_is_called_as_another_or_leads_out_of_its_directory() {
        assert_eq!(checked_files(&["db", "web.pem", "a_b-c"]), Ok(()));
        for wrong in [&["db", "db"][..], &[""], &["."], &[".."], &["a/b"], &["a\0"], &["é"]] {
            assert!(matches!(checked_files(wrong), Err(Fault::Malformed(_))), "{wrong:?}");
        }
        assert!(checked_files(&["x".repeat(65).as_str()]).is_err());
    }

    #[test]
    fn a_lease_is_renewed_while_half_of_it_is_left_and_one_that_cannot_be_is_not_asked_for() {
        assert_eq!(pause(3_600_000, true), Duration::from_secs(1800));
        assert_eq!(pause(3_600_000, false), Duration::from_secs(3600));
        // Nobody is asked without end.
        assert_eq!(pause(0, true), SHORTEST_PAUSE);
    }
}
