//! Scripts: bytes as what a client sends. Every byte string is a script. Numbers of questions,
//! exports and embargoes come from a small range, so that they meet, or from the edges.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use capnp::message::{Builder, HeapAllocator, ReaderOptions};
use capnp::traits::{HasTypeId, ImbueMut};
use capnp_rpc::rpc_capnp::{
    cap_descriptor, disembargo, exception, message, message_target, payload, promised_answer,
    return_,
};
use distos_schemas::capability_capnp::{capability, door, edge, lessee, lessor};
use distos_schemas::memory_capnp::region;
use distos_types::restore_message;

use super::kernel::{RIGHTS, VAT, chain, holder, node};
use crate::Input;

/// What a script may do; the first byte of each step, modulo their number.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Step {
    Bootstrap,
    Call,
    Finish,
    Release,
    Restore,
    Resolve,
    Disembargo,
    Return,
    Abort,
    Unimplemented,
    ThirdParty,
    Raw,
    Frame,
    Wait,
    Damage,
    CloseWriting,
}

const STEPS: [Step; 16] = [
    Step::Bootstrap,
    Step::Call,
    Step::Finish,
    Step::Release,
    Step::Restore,
    Step::Resolve,
    Step::Disembargo,
    Step::Return,
    Step::Abort,
    Step::Unimplemented,
    Step::ThirdParty,
    Step::Raw,
    Step::Frame,
    Step::Wait,
    Step::Damage,
    Step::CloseWriting,
];

/// Steps of one script.
const MAX_STEPS: usize = 256;
/// How long the vat may hold a client back before the script ends: it may do so for good.
const HELD_BACK: Duration = Duration::from_millis(200);
/// How long a script waits for the answers of a restore.
const ANSWER: Duration = Duration::from_millis(500);
/// Questions of [`Step::Restore`], outside the range of the others.
const RESTORE_QUESTIONS: u32 = 0x1000;

type Message = Builder<HeapAllocator>;

/// Plays a script on a connection, and closes it. Returns how often it restored the good chain
/// with its key.
pub(super) fn play(script: &[u8], stream: UnixStream) -> u64 {
    stream.set_nonblocking(true).unwrap();
    let mut client = Client {
        stream,
        received: Vec::new(),
        open: true,
        restores: 0,
        cap: 0,
        damage: Vec::new(),
    };
    let mut input = Input::new(script);
    for _ in 0..MAX_STEPS {
        if input.is_empty() || !client.open {
            break;
        }
        client.step(&mut input);
    }
    client.restores
}

struct Client {
    stream: UnixStream,
    received: Vec<u8>,
    open: bool,
    restores: u64,
    /// The export that the last restore gave.
    cap: u32,
    /// What to write over the next message: where, and which word.
    damage: Vec<(u16, u64)>,
}

impl Client {
    fn step(&mut self, input: &mut Input<'_>) {
        match STEPS[usize::from(input.u8()) % STEPS.len()] {
            Step::Bootstrap => self.build(|root| root.init_bootstrap().set_question_id(id(input))),
            Step::Call => self.call(input),
            Step::Finish => self.build(|root| {
                let mut finish = root.init_finish();
                finish.set_question_id(id(input));
                let flags = input.u8();
                finish.set_release_result_caps(flags & 1 == 0);
                finish.set_require_early_cancellation_workaround(flags & 2 == 0);
            }),
            Step::Release => {
                let cap = self.cap;
                self.build(|root| {
                    let mut release = root.init_release();
                    release.set_id(import(input, cap));
                    release.set_reference_count(id(input));
                });
            }
            Step::Restore => self.restore(input),
            Step::Resolve => {
                let cap = self.cap;
                self.build(|root| {
                    let mut resolve = root.init_resolve();
                    resolve.set_promise_id(id(input));
                    if input.flag() {
                        descriptor(input, cap, resolve.init_cap());
                    } else {
                        exception(input, resolve.init_exception());
                    }
                });
            }
            Step::Disembargo => {
                let cap = self.cap;
                self.build(|root| disembargo(input, cap, root.init_disembargo()));
            }
            Step::Return => {
                let cap = self.cap;
                self.build(|root| answer(input, cap, root.init_return()));
            }
            Step::Abort => self.build(|root| exception(input, root.init_abort())),
            Step::Unimplemented => {
                let cap = self.cap;
                self.build(|root| {
                    let inner = root.init_unimplemented();
                    match input.u8() % 4 {
                        0 => inner.init_bootstrap().set_question_id(id(input)),
                        1 => answer(input, cap, inner.init_return()),
                        2 => descriptor(input, cap, inner.init_resolve().init_cap()),
                        _ => inner.init_unimplemented().init_finish().set_question_id(id(input)),
                    }
                });
            }
            Step::ThirdParty => {
                let cap = self.cap;
                self.build(|root| match input.u8() % 3 {
                    0 => {
                        let mut provide = root.init_provide();
                        provide.set_question_id(id(input));
                        target(input, cap, provide.init_target());
                    }
                    1 => {
                        let mut accept = root.init_accept();
                        accept.set_question_id(id(input));
                        accept.set_embargo(input.flag());
                    }
                    _ => {
                        let mut join = root.init_join();
                        join.set_question_id(id(input));
                        target(input, cap, join.init_target());
                    }
                });
            }
            Step::Raw => {
                let len = usize::from(input.u8());
                self.send(input.take(len));
            }
            Step::Frame => self.frame(input),
            Step::Wait => self.wait(Duration::from_millis(u64::from(input.u8() % 4))),
            Step::Damage => {
                let place = input.u16();
                let word = match input.u8() {
                    which if usize::from(which) < WORDS.len() => WORDS[usize::from(which)],
                    _ => input.u64(),
                };
                if self.damage.len() < 8 {
                    self.damage.push((place, word));
                }
            }
            Step::CloseWriting => {
                let _ = self.stream.shutdown(std::net::Shutdown::Write);
            }
        }
    }

    fn build(&mut self, fill: impl FnOnce(message::Builder<'_>)) {
        let mut message = Message::new_default();
        fill(message.init_root());
        self.send_message(&message);
    }

    fn send_message(&mut self, message: &Message) {
        let mut bytes = capnp::serialize::write_message_to_words(message);
        for (place, word) in std::mem::take(&mut self.damage) {
            // The table stays: it has steps of its own.
            let words = bytes.len() / 8 - 1;
            let at = (1 + usize::from(place) % words.max(1)) * 8;
            if let Some(over) = bytes.get_mut(at..at + 8) {
                over.copy_from_slice(&word.to_le_bytes());
            }
        }
        self.send(&bytes);
    }

    fn send(&mut self, mut bytes: &[u8]) {
        let mut since = Instant::now();
        while !bytes.is_empty() && self.open {
            match self.stream.write(bytes) {
                Ok(0) => self.open = false,
                Ok(written) => {
                    bytes = &bytes[written..];
                    since = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.receive();
                    if since.elapsed() > HELD_BACK {
                        self.open = false;
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                Err(_) => self.open = false,
            }
        }
    }

    /// Takes in what has come.
    fn receive(&mut self) {
        let mut buffer = [0; 64 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.open = false;
                    return;
                }
                Ok(read) => self.received.extend(&buffer[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.open = false;
                    return;
                }
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        std::thread::sleep(time);
        self.receive();
    }

    /// The message that comes next, if it is there as a whole.
    fn next_message(&mut self) -> Option<capnp::message::Reader<capnp::serialize::OwnedSegments>> {
        let mut rest = self.received.as_slice();
        let read = capnp::serialize::try_read_message(&mut rest, ReaderOptions::new());
        let left = rest.len();
        match read {
            Ok(Some(message)) => {
                let taken = self.received.len() - left;
                self.received.drain(..taken);
                Some(message)
            }
            _ => None,
        }
    }

    /// What `read` makes of the answer to a question.
    fn answer<T>(
        &mut self,
        question: u32,
        read: impl Fn(payload::Reader<'_>) -> capnp::Result<T>,
    ) -> Option<T> {
        let until = Instant::now() + ANSWER;
        loop {
            self.receive();
            while let Some(message) = self.next_message() {
                let Ok(root) = message.get_root::<message::Reader<'_>>() else { continue };
                if let Ok(message::Return(Ok(reply))) = root.which()
                    && reply.get_answer_id() == question
                {
                    return match reply.which() {
                        Ok(return_::Results(Ok(results))) => read(results).ok(),
                        _ => None,
                    };
                }
            }
            if !self.open || Instant::now() > until {
                return None;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// Asks for a challenge and restores the good chain, as a good client does; with the wrong key
    /// if the script says so.
    fn restore(&mut self, input: &mut Input<'_>) {
        let wrong = input.u8() == 1;
        let first = RESTORE_QUESTIONS + 8 * (self.restores as u32 + u32::from(wrong) * 1024);
        self.build(|root| root.init_bootstrap().set_question_id(first));
        self.build(|root| {
            let mut call = root.init_call();
            call.set_question_id(first + 1);
            call.set_interface_id(door::Client::TYPE_ID);
            call.set_method_id(0);
            call.reborrow().init_target().init_promised_answer().set_question_id(first);
            call.init_params();
        });
        let nonce = self.answer(first + 1, |results| {
            let results = results.get_content().get_as::<door::challenge_results::Reader<'_>>()?;
            Ok(<[u8; 32]>::try_from(results.get_nonce()?).unwrap_or_default())
        });
        let Some(nonce) = nonce else { return };
        let bytes = chain().encode();
        let signed =
            restore_message(&nonce, node(), &distos_abi::VatName::new(VAT).unwrap(), &bytes);
        let key = if wrong { distos_types::HolderSecret::from_seed([99; 32]) } else { holder() };
        let signature = key.sign(&signed);
        if !wrong {
            self.restores += 1;
        }
        self.build(|root| {
            let mut call = root.init_call();
            call.set_question_id(first + 2);
            call.set_interface_id(door::Client::TYPE_ID);
            call.set_method_id(1);
            call.reborrow().init_target().init_promised_answer().set_question_id(first);
            let mut params =
                call.init_params().init_content().init_as::<door::restore_params::Builder<'_>>();
            params.set_chain(&bytes);
            params.set_signature(&signature);
        });
        let cap =
            self.answer(first + 2, |results| match results.get_cap_table()?.get(0).which()? {
                cap_descriptor::SenderHosted(export) => Ok(export),
                _ => Ok(0),
            });
        if let Some(cap) = cap {
            assert!(!wrong, "a restore with another key than the holder's is answered");
            self.cap = cap;
        }
    }

    fn call(&mut self, input: &mut Input<'_>) {
        let cap = self.cap;
        self.build(|root| {
            let mut call = root.init_call();
            call.set_question_id(id(input));
            target(input, cap, call.reborrow().init_target());
            let (interface, method) = method(input);
            call.set_interface_id(interface);
            call.set_method_id(method);
            let flags = input.u8();
            call.set_allow_third_party_tail_call(flags & 1 == 1);
            call.set_no_promise_pipelining(flags & 2 == 2);
            call.set_only_promise_pipeline(flags & 4 == 4);
            match flags >> 6 {
                1 => call.reborrow().get_send_results_to().set_yourself(()),
                2 => drop(call.reborrow().get_send_results_to().init_third_party()),
                _ => {}
            }
            fill(input, cap, call.init_params());
        });
    }

    /// A segment table of any numbers, and a little behind it.
    fn frame(&mut self, input: &mut Input<'_>) {
        let mut bytes = Vec::new();
        for _ in 0..1 + input.u8() % 6 {
            bytes.extend(
                match input.u8() {
                    0 => u32::MAX,
                    1 => 0x8000_0000,
                    2 => 0x2000_0000,
                    3 => 262_144,
                    4 => 262_145,
                    5 => 511,
                    6 => 512,
                    small => u32::from(small % 8),
                }
                .to_le_bytes(),
            );
        }
        let len = usize::from(input.u8());
        bytes.extend(input.take(len));
        self.send(&bytes);
    }
}

/// Words that mean much to a reader of pointers: a structure that is its own member, lists of
/// half a billion elements without size, far pointers to themselves and beyond the end,
/// capabilities that are not there.
const WORDS: [u64; 12] = [
    0,
    0x0001_0000_ffff_fffc,
    0x0003_0002_ffff_fff8,
    0xffff_fff8_0000_0001,
    0xffff_ffff_0000_0001,
    0xffff_ffff_ffff_fffd,
    0x0000_0000_0000_0002,
    0x0000_0000_0000_0006,
    0x7fff_ffff_ffff_fff2,
    0x0000_0000_0000_0003,
    0xffff_ffff_0000_0003,
    u64::MAX,
];

/// A number of a question, an export or an embargo.
fn id(input: &mut Input<'_>) -> u32 {
    match input.u8() {
        255 => u32::MAX,
        254 => 0x8000_0000,
        253 => 0x7fff_ffff,
        252 => 100_000,
        251 => RESTORE_QUESTIONS,
        250 => RESTORE_QUESTIONS + 2,
        small => u32::from(small % 16),
    }
}

/// A number of something that the vat has exported.
fn import(input: &mut Input<'_>, cap: u32) -> u32 {
    if input.flag() { cap } else { id(input) }
}

fn method(input: &mut Input<'_>) -> (u64, u16) {
    let interface = match input.u8() % 7 {
        0 => door::Client::TYPE_ID,
        1 | 2 => region::Client::TYPE_ID,
        3 => capability::Client::TYPE_ID,
        4 => edge::Client::TYPE_ID,
        5 => lessor::Client::TYPE_ID,
        _ => input.u64(),
    };
    let method = match input.u8() {
        255 => u16::MAX,
        small => u16::from(small % 8),
    };
    (interface, method)
}

fn target(input: &mut Input<'_>, cap: u32, mut to: message_target::Builder<'_>) {
    if input.flag() {
        to.set_imported_cap(import(input, cap));
    } else {
        promised(input, to.init_promised_answer());
    }
}

fn promised(input: &mut Input<'_>, mut to: promised_answer::Builder<'_>) {
    to.set_question_id(id(input));
    let count = u32::from(input.u8() % 4);
    let mut transform = to.init_transform(count);
    for at in 0..count {
        match input.u8() {
            0 => transform.reborrow().get(at).set_noop(()),
            255 => transform.reborrow().get(at).set_get_pointer_field(u16::MAX),
            field => transform.reborrow().get(at).set_get_pointer_field(u16::from(field % 3)),
        }
    }
}

fn descriptor(input: &mut Input<'_>, cap: u32, mut to: cap_descriptor::Builder<'_>) {
    match input.u8() % 6 {
        0 => to.set_none(()),
        1 => to.set_sender_hosted(id(input)),
        2 => to.set_sender_promise(id(input)),
        3 => to.set_receiver_hosted(import(input, cap)),
        4 => promised(input, to.init_receiver_answer()),
        _ => {
            let mut third = to.init_third_party_hosted();
            third.set_vine_id(id(input));
        }
    }
}

fn exception(input: &mut Input<'_>, mut to: exception::Builder<'_>) {
    let len = usize::from(input.u8());
    let reason = String::from_utf8_lossy(input.take(len));
    to.set_reason(reason.as_ref());
}

fn disembargo(input: &mut Input<'_>, cap: u32, mut to: disembargo::Builder<'_>) {
    target(input, cap, to.reborrow().init_target());
    let mut context = to.init_context();
    match input.u8() % 4 {
        0 => context.set_sender_loopback(id(input)),
        1 => context.set_receiver_loopback(id(input)),
        2 => context.set_accept(()),
        _ => context.set_provide(id(input)),
    }
}

fn answer(input: &mut Input<'_>, cap: u32, mut to: return_::Builder<'_>) {
    to.set_answer_id(id(input));
    let flags = input.u8();
    to.set_release_param_caps(flags & 1 == 0);
    to.set_no_finish_needed(flags & 2 == 2);
    match input.u8() % 6 {
        0 => fill(input, cap, to.init_results()),
        1 => exception(input, to.init_exception()),
        2 => to.set_canceled(()),
        3 => to.set_results_sent_elsewhere(()),
        4 => to.set_take_from_other_question(id(input)),
        _ => drop(to.init_accept_from_third_party()),
    }
}

/// Parameters or results: of a method that the vat has, or of none.
fn fill(input: &mut Input<'_>, cap: u32, mut to: payload::Builder<'_>) {
    let count = u32::from(input.u8() % 4);
    let mut table = to.reborrow().init_cap_table(count);
    for at in 0..count {
        descriptor(input, cap, table.reborrow().get(at));
    }
    // What is referred to by its place in the table above.
    let mut table = Vec::new();
    let mut content = to.reborrow().init_content();
    match input.u8() % 9 {
        0 => {}
        1 => {
            let mut read = content.init_as::<region::read_params::Builder<'_>>();
            read.set_offset(u64::from(input.u8()));
            // Up to more than a reply may have.
            read.set_len(u32::from(input.u16()) << (input.u8() % 8));
        }
        2 => {
            let mut write = content.init_as::<region::write_params::Builder<'_>>();
            write.reborrow().init_data(u32::from(input.u16()) << (input.u8() % 6));
        }
        3 => {
            let mut restore = content.init_as::<door::restore_params::Builder<'_>>();
            if input.flag() {
                restore.set_chain(&chain().encode());
            } else {
                let len = usize::from(input.u8());
                restore.set_chain(input.take(len));
            }
            restore.set_signature(&input.array::<64>());
        }
        4 => {
            let mut attenuate = content.init_as::<capability::attenuate_params::Builder<'_>>();
            attenuate.set_rights(RIGHTS.0 & u64::from(input.u16()));
            attenuate.init_caveats().set_range_end(input.u64());
        }
        5 => {
            let mut gift = content.init_as::<capability::gift_params::Builder<'_>>();
            let len = usize::from(input.u8());
            gift.set_receiver(String::from_utf8_lossy(input.take(len)).as_ref());
        }
        6 => {
            let mut link = content.init_as::<capability::revoke_link_params::Builder<'_>>();
            let len = usize::from(input.u8());
            link.set_link(input.take(len));
        }
        7 => {
            let renew = content.init_as::<lessor::renew_params::Builder<'_>>();
            let count = u32::from(input.u8() % 8);
            let mut released = renew.init_released(count);
            for at in 0..count {
                released.set(at, u64::from(input.u8()));
            }
        }
        _ => {
            content.imbue_mut(&mut table);
            let mut lessor = content.init_as::<door::lessor_params::Builder<'_>>();
            lessor.set_lessee(capnp_rpc::new_client(Nobody));
        }
    }
}

/// Stands for a capability of the client's, which is all that is said of it.
struct Nobody;

impl lessee::Server for Nobody {}

fn script(steps: &[(Step, &[u8])]) -> Vec<u8> {
    steps.iter().flat_map(|(step, input)| [&[*step as u8], *input].concat()).collect()
}

/// A call of a method of the restored capability: question, method, parameters.
fn on_cap(question: u8, method: u8, params: &[u8]) -> Vec<u8> {
    [&[question, 1, 1, 1, method, 0, 0], params].concat()
}

/// Valid sessions, each of another kind.
pub fn seeds() -> Vec<(String, Vec<u8>)> {
    use Step::{
        Abort, Bootstrap, Call, CloseWriting, Damage, Disembargo, Finish, Frame, Raw, Release,
        Resolve, Restore, Return, ThirdParty, Unimplemented, Wait,
    };
    let read = on_cap(1, 0, &[1, 0, 16, 0, 0]);
    let large = on_cap(2, 0, &[1, 0, 0, 16, 7]);
    let write = on_cap(3, 1, &[2, 0, 1, 1]);
    let info = on_cap(4, 2, &[0]);
    let never = on_cap(5, 3, &[0]);
    // The base interface: question, imported cap, its number, interface 3, method.
    let base =
        |question, method, params: &[u8]| [&[question, 1, 1, 3, method, 0, 0], params].concat();
    let attenuate = base(6, 1, &[4, 1, 0, 255, 0, 0, 0, 0, 0, 0, 0]);
    // On what another answer will give: question, promised answer, its number, one field.
    let pipelined: &[u8] = &[7, 0, 6, 1, 1, 3, 0, 0, 0, 0];
    let challenge: &[u8] = &[1, 0, 0, 0, 0, 0, 0, 0, 0];
    let forged = [&[2, 0, 0, 0, 0, 1, 0, 0, 3, 1][..], &[9; 64]].concat();
    let with_caps: &[u8] = &[8, 1, 1, 3, 0, 0, 3, 1, 5, 2, 6, 3, 1, 0];
    let named = |name: &str, steps: &[(Step, &[u8])]| (name.to_owned(), script(steps));
    vec![
        named(
            "reads",
            &[(Restore, &[0]), (Call, &read), (Wait, &[1]), (Finish, &[1, 0]), (Release, &[1, 1])],
        ),
        named(
            "writes",
            &[
                (Restore, &[0]),
                (Call, &write),
                (Call, &info),
                (Wait, &[3]),
                (Finish, &[3, 0]),
                (Finish, &[4, 0]),
            ],
        ),
        named(
            "large",
            &[(Restore, &[0]), (Call, &large), (Call, &read), (Wait, &[3]), (Finish, &[2, 0])],
        ),
        named(
            "gives-up",
            &[(Restore, &[0]), (Call, &never), (Finish, &[5, 0]), (Call, &read), (Wait, &[2])],
        ),
        named(
            "attenuates",
            &[
                (Restore, &[0]),
                (Call, &attenuate),
                (Call, pipelined),
                (Wait, &[2]),
                (Finish, &[6, 0]),
                (Finish, &[7, 0]),
            ],
        ),
        named(
            "revokes",
            &[(Restore, &[0]), (Call, &base(6, 2, &[0])), (Call, &read), (Wait, &[2])],
        ),
        named(
            "leases",
            &[
                (Restore, &[0]),
                // On the door: who is told, the first of the table; a lease; renewals on the lessor that came.
                (Bootstrap, &[9]),
                (Call, &[10, 0, 9, 0, 0, 3, 0, 1, 1, 5, 8]),
                (Call, &base(11, 6, &[0])),
                (Wait, &[3]),
                (Call, &[12, 0, 10, 1, 3, 5, 0, 0, 0, 7, 2, 1, 3]),
                (Call, &base(13, 2, &[0])),
                (Wait, &[2]),
                (Return, &[0, 0, 0]),
            ],
        ),
        named(
            "base",
            &[
                (Restore, &[0]),
                (Call, &base(1, 0, &[0])),
                (Call, &base(2, 4, &[0, 5, 1, 65])),
                (Call, &base(3, 5, &[0, 4, 0, 0])),
                (Wait, &[2]),
            ],
        ),
        named("wrong-key", &[(Restore, &[1]), (Call, &read), (Wait, &[1])]),
        named("forged", &[(Bootstrap, &[0]), (Call, challenge), (Call, &forged), (Wait, &[2])]),
        named(
            "caps",
            &[
                (Restore, &[0]),
                (Call, with_caps),
                (Wait, &[1]),
                (Resolve, &[6, 1, 3, 1]),
                (Disembargo, &[1, 1, 1, 0]),
                (Wait, &[1]),
            ],
        ),
        named(
            "answers",
            &[
                (Bootstrap, &[0]),
                (Return, &[0, 0, 0, 0, 0]),
                (Unimplemented, &[1, 0, 0, 2]),
                (ThirdParty, &[0, 1, 1, 0]),
                (Wait, &[1]),
            ],
        ),
        named("aborts", &[(Restore, &[0]), (Call, &read), (Abort, &[2, 65, 66]), (Wait, &[1])]),
        named("leaves", &[(Restore, &[0]), (Call, &large), (CloseWriting, &[]), (Wait, &[1])]),
        named(
            "frames",
            &[(Frame, &[1, 0, 3, 4, 1, 2, 3, 4]), (Raw, &[4, 0, 0, 0, 0]), (Wait, &[1])],
        ),
        named(
            "damaged",
            &[
                (Restore, &[0]),
                (Damage, &[2, 0, 1]),
                (Call, &read),
                (Damage, &[9, 0, 3]),
                (Call, &info),
                (Wait, &[1]),
            ],
        ),
    ]
}
