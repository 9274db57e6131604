//! A job as its owner submits it, read from the wire and bounded before anything is kept of it.

use distos_abi::{Fault, TenantId};
use distos_schemas::scheduler_capnp::{job_secret, job_spec, limits};

use distos_rpc::Gift;

use crate::cut::Cut;
use crate::policy::Limits;
use crate::state::NewJob;

/// The largest module, in bytes.
pub const MAX_MODULE_BYTES: usize = 8 * 1024 * 1024;
const MAX_NAME_BYTES: usize = 64;
const MAX_ARGS: u32 = 64;
const MAX_ARG_BYTES: usize = 16 * 1024;
const MAX_SECRETS: u32 = 16;

/// A job that was read: what the state keeps, what the executor needs, and the arguments.
pub struct Submission {
    /// What the state keeps.
    pub job: NewJob,
    /// What the executor needs.
    pub payload: Payload,
    /// The tasks' arguments.
    pub args: Args,
}

/// What is handed to the executor once and then forgotten.
pub struct Payload {
    /// The program.
    pub module: Vec<u8>,
    /// The region to read.
    pub input: Gift,
    /// The region to write.
    pub output: Gift,
    /// The secrets to read, and the names of their files, which the executor checks.
    pub secrets: Vec<(String, Gift)>,
}

/// argv[1..] of each kind of task.
pub struct Args {
    /// Of a map task.
    pub map: Vec<String>,
    /// Of the reduce task.
    pub reduce: Vec<String>,
}

/// Reads a job for `workers` workers. [`Fault::Malformed`] says which field is wrong; the outer
/// error is Cap'n Proto's own, of bytes that are no message.
pub fn read(
    spec: job_spec::Reader<'_>,
    tenant: TenantId,
    workers: u32,
) -> capnp::Result<Result<Submission, Fault>> {
    let name = String::from_utf8_lossy(spec.get_name()?.as_bytes()).into_owned();
    let output_name = String::from_utf8_lossy(spec.get_output_name()?.as_bytes()).into_owned();
    let (map, reduce) = (args(spec.get_map_args()?)?, args(spec.get_reduce_args()?)?);
    let asked = limits_of(spec.get_limits()?);
    let module = spec.get_module()?;
    let (input, output) = (Gift::read(spec.get_input()?)?, Gift::read(spec.get_output()?)?);
    let secrets = secrets(spec.get_secrets()?)?;
    let read = || {
        check_name("name", &name)?;
        if !output_name.is_empty() {
            check_name("outputName", &output_name)?;
        }
        check_len("module", module.len(), MAX_MODULE_BYTES)?;
        let cut = Cut::new(spec.get_input_bytes(), spec.get_pages_per_task(), workers)?;
        let limits = asked.settle(Limits::CAPS);
        let (name, output_name) = (name.clone(), output_name.clone());
        let job = NewJob {
            tenant,
            name,
            output: output_name,
            cut,
            reduce: spec.get_reduce(),
            limits,
            deployed: false,
        };
        let (input, output, secrets) = (input?, output?, secrets?);
        let payload = Payload { module: module.to_vec(), input, output, secrets };
        Ok(Submission { job, payload, args: Args { map: map?, reduce: reduce? } })
    };
    Ok(read())
}

fn check_name(field: &str, name: &str) -> Result<(), Fault> {
    let printable = name.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if printable && (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    Err(Fault::malformed(format!("{field}: 1 to {MAX_NAME_BYTES} printable bytes")))
}

fn check_len(field: &str, len: usize, max: usize) -> Result<(), Fault> {
    if (1..=max).contains(&len) {
        return Ok(());
    }
    Err(Fault::malformed(format!("{field} has {len} bytes: 1 to {max} are taken")))
}

fn args(list: capnp::text_list::Reader<'_>) -> capnp::Result<Result<Vec<String>, Fault>> {
    if list.len() > MAX_ARGS {
        return Ok(Err(Fault::malformed(format!("more than {MAX_ARGS} arguments"))));
    }
    let mut words = Vec::new();
    for arg in list.iter() {
        words.push(arg?.to_str()?.to_owned());
    }
    let bytes: usize = words.iter().map(String::len).sum();
    if bytes > MAX_ARG_BYTES || words.iter().any(|word| word.contains('\0')) {
        let why = format!("arguments: at most {MAX_ARG_BYTES} bytes together, without NUL");
        return Ok(Err(Fault::malformed(why)));
    }
    Ok(Ok(words))
}

fn secrets(
    list: capnp::struct_list::Reader<'_, job_secret::Owned>,
) -> capnp::Result<Result<Vec<(String, Gift)>, Fault>> {
    if list.len() > MAX_SECRETS {
        return Ok(Err(Fault::malformed(format!("more than {MAX_SECRETS} secrets"))));
    }
    let mut secrets = Vec::new();
    for secret in list {
        let file = String::from_utf8_lossy(secret.get_file()?.as_bytes()).into_owned();
        if let Err(fault) = check_name("a secret's file", &file) {
            return Ok(Err(fault));
        }
        match Gift::read(secret.get_gift()?)? {
            Ok(gift) => secrets.push((file, gift)),
            Err(fault) => return Ok(Err(fault)),
        }
    }
    Ok(Ok(secrets))
}

fn limits_of(limits: limits::Reader<'_>) -> Limits {
    Limits {
        fuel: limits.get_fuel(),
        memory_bytes: limits.get_memory_bytes(),
        output_bytes: limits.get_output_bytes(),
        wall_ms: limits.get_wall_ms(),
    }
}

#[cfg(test)]
mod tests {
    use distos_abi::{NodeId, VatName};

    use super::*;

    fn gift(ticket: &[u8], node: &[u8]) -> Gift {
        let vat = VatName::new("memory").unwrap();
        Gift { ticket: ticket.to_vec(), node: NodeId::try_from(node).ok(), vat }
    }

    /// A good job that `change` makes worse.
    fn read_with(change: impl FnOnce(job_spec::Builder<'_>)) -> Result<Submission, Fault> {
        let mut message = capnp::message::Builder::new_default();
        let mut spec = message.init_root::<job_spec::Builder<'_>>();
        spec.set_name("count words");
        spec.set_module(b"\0asm");
        gift(&[1; 32], &[]).write(spec.reborrow().init_input());
        gift(&[2; 32], &[3; 32]).write(spec.reborrow().init_output());
        spec.set_input_bytes(100);
        change(spec.reborrow());
        read(spec.into_reader(), TenantId(1), 2).unwrap()
    }

    fn refused(change: impl FnOnce(job_spec::Builder<'_>)) -> bool {
        matches!(read_with(change), Err(Fault::Malformed(_)))
    }

    #[test]
    fn a_job_without_limits_gets_the_defaults() {
        let read = read_with(|mut spec| spec.set_reduce(true)).unwrap();
        assert_eq!((read.job.limits, read.job.reduce), (Limits::DEFAULT, true));
        assert_eq!(read.job.cut.maps(), 1);
    }

    #[test]
    fn a_jobs_secrets_go_on_to_the_executor_under_their_names() {
        let read = read_with(|spec| {
            let mut secret = spec.init_secrets(1).get(0);
            secret.set_file("db");
            gift(&[5; 32], &[]).write(secret.init_gift());
        });
        assert_eq!(read.unwrap().payload.secrets, [("db".to_owned(), gift(&[5; 32], &[]))]);
    }

    #[test]
    fn a_broken_job_is_refused_before_it_costs_anything() {
        assert!(refused(|mut spec| spec.set_name("")));
        assert!(refused(|mut spec| spec.set_name("a\nb")));
        assert!(refused(|mut spec| spec.set_output_name("a\nb")));
        assert!(refused(|mut spec| spec.set_output_name("x".repeat(65).as_str())));
        assert!(refused(|mut spec| spec.set_name("x".repeat(65).as_str())));
        assert!(refused(|mut spec| spec.set_module(&[])));
        assert!(refused(|mut spec| spec.set_module(&vec![0; MAX_MODULE_BYTES + 1])));
        assert!(refused(|spec| gift(&[], &[]).write(spec.init_input())));
        assert!(refused(|spec| gift(&[0; 257], &[]).write(spec.init_output())));
        assert!(refused(|mut spec| spec.reborrow().init_input().set_vat("a/b/c")));
        assert!(refused(|spec| {
            let mut input = spec.init_input();
            gift(&[1; 32], &[]).write(input.reborrow());
            input.set_node(&[1; 31]);
        }));
        assert!(refused(|mut spec| spec.set_input_bytes(0)));
        assert!(refused(|spec| spec.init_map_args(1).set(0, "a\0b")));
        assert!(refused(|spec| {
            spec.init_reduce_args(65);
        }));
        assert!(refused(|spec| {
            spec.init_secrets(17);
        }));
        assert!(refused(|spec| {
            let mut secret = spec.init_secrets(1).get(0);
            secret.set_file("x".repeat(65).as_str());
            gift(&[1; 32], &[]).write(secret.init_gift());
        }));
        assert!(refused(|spec| {
            let mut secret = spec.init_secrets(1).get(0);
            secret.set_file("db");
            gift(&[], &[]).write(secret.init_gift());
        }));
    }
}
