//! Capability files: sturdy capabilities as text that people store, mail and hand over.
//!
//! ```text
//! distos capability file v1
//! node: 64 HEXADECIMAL DIGITS
//! sockets: /run/distos            (optional: where the node's sockets were; only a hint)
//! [regions]
//! the encoded chain in hexadecimal, 76 digits a line
//! check: BLAKE3 of all lines above, each with its line feed, in hexadecimal
//! ```
//!
//! The check finds accidents, not forgeries: authority rests on the chains' signatures alone, and
//! the file is useless without the secret key of its holder (C4).

use distos_abi::{Fault, NodeId};

use crate::Chain;
use crate::key::check_version;

const HEADER: &str = "distos capability file v";
const VERSION: u32 = 1;
const NODE: &str = "node: ";
const SOCKETS: &str = "sockets: ";
const CHECK: &str = "check: ";
const WRAP: usize = 76;
const MAX_BYTES: usize = 64 * 1024;
const MAX_ENTRIES: usize = 32;
const MAX_NAME_BYTES: usize = 64;
/// The digits of the longest chain that is decoded at all.
const MAX_CHAIN_DIGITS: usize = 2 * 4096;

/// A set of sturdy capabilities at one node, each under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapFile {
    /// The node where all of them live.
    pub node: NodeId,
    /// The directory of the node's sockets when the file was written: a hint, not signed.
    pub sockets: Option<String>,
    /// The capabilities.
    pub entries: Vec<CapEntry>,
}

/// One capability of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapEntry {
    /// Its name in the file: 1 to 64 printable ASCII characters other than brackets and blanks.
    pub name: String,
    /// The capability.
    pub chain: Chain,
}

impl CapFile {
    /// The file's text. A name's characters that no name may have become `_`; a socket directory
    /// with control characters is left out.
    pub fn to_text(&self) -> String {
        let mut text = format!("{HEADER}{VERSION}\n{NODE}{}\n", self.node);
        if let Some(path) = self.sockets.as_deref().filter(|path| sockets_fit(path)) {
            text += &format!("{SOCKETS}{path}\n");
        }
        for entry in &self.entries {
            text += &format!("[{}]\n", fitting_name(&entry.name));
            let digits = hex::encode(entry.chain.encode());
            let mut rest = digits.as_str();
            while !rest.is_empty() {
                let (line, tail) = rest.split_at(rest.len().min(WRAP));
                text += &format!("{line}\n");
                rest = tail;
            }
        }
        let check = blake3::hash(text.as_bytes());
        format!("{text}{CHECK}{check}\n")
    }

    /// Reads [`CapFile::to_text`]: at most 64 KiB and 32 entries. [`Fault::Malformed`] says which
    /// line is wrong and what to do. Checks no signature.
    pub fn parse(text: &str) -> Result<CapFile, Fault> {
        if text.len() > MAX_BYTES {
            return Err(Fault::malformed(format!(
                "{} bytes is too long for a capability file; it has at most {MAX_BYTES}",
                text.len()
            )));
        }
        let lines: Vec<&str> = text.lines().collect();
        let version =
            lines.first().and_then(|line| line.strip_prefix(HEADER)).ok_or_else(|| {
                bad(
                    1,
                    format_args!(
                        "this is no capability file: it starts with \"{HEADER}{VERSION}\""
                    ),
                )
            })?;
        check_version(version, VERSION, "capability")?;
        let (body, check) = split_check(&lines)?;
        let draft = Draft::read(body)?;
        if check != blake3::hash(&checked_bytes(body)).to_hex().as_str() {
            return Err(bad(
                body.len() + 1,
                "the file is damaged: its check does not match: copy the file again",
            ));
        }
        draft.finish()
    }

    /// The capability of this name.
    pub fn find(&self, name: &str) -> Option<&CapEntry> {
        self.entries.iter().find(|entry| entry.name == name)
    }
}

/// What the lines say, before the check and before any chain is decoded.
struct Draft<'a> {
    node: NodeId,
    sockets: Option<String>,
    entries: Vec<DraftEntry<'a>>,
}

struct DraftEntry<'a> {
    line: usize,
    name: &'a str,
    digits: String,
}

impl<'a> Draft<'a> {
    /// Reads all lines but the check; the first is known to be the header.
    fn read(lines: &[&'a str]) -> Result<Draft<'a>, Fault> {
        let mut draft =
            Draft { node: read_node(lines.get(1))?, sockets: None, entries: Vec::new() };
        for (&line, number) in lines.iter().zip(1..).skip(2) {
            match line.strip_prefix(SOCKETS) {
                Some(path) if number == 3 && sockets_fit(path) => {
                    draft.sockets = Some(path.to_owned())
                }
                _ => draft.read_entry_line(line, number)?,
            }
        }
        Ok(draft)
    }

    fn read_entry_line(&mut self, line: &'a str, number: usize) -> Result<(), Fault> {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return self.start_entry(name, number);
        }
        let entry = self.entries.last_mut().ok_or_else(|| {
            bad(number, "expected \"[NAME]\" of a capability: copy the file again")
        })?;
        if line.is_empty() || !line.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad(
                number,
                "expected hexadecimal digits or \"[NAME]\": the file is damaged: copy it again",
            ));
        }
        if entry.digits.len() + line.len() > MAX_CHAIN_DIGITS {
            return Err(bad(number, format_args!("the capability {} is too long", entry.name)));
        }
        entry.digits += line;
        Ok(())
    }

    fn start_entry(&mut self, name: &'a str, line: usize) -> Result<(), Fault> {
        if !name_fits(name) {
            return Err(bad(
                line,
                format_args!(
                    "a capability's name is 1 to {MAX_NAME_BYTES} printable ASCII characters \
                     without brackets and blanks"
                ),
            ));
        }
        if self.entries.iter().any(|entry| entry.name == name) {
            return Err(bad(line, format_args!("the name {name} occurs twice: rename one")));
        }
        if self.entries.len() >= MAX_ENTRIES {
            return Err(bad(
                line,
                format_args!("more than {MAX_ENTRIES} capabilities: split the file"),
            ));
        }
        self.entries.push(DraftEntry { line, name, digits: String::new() });
        Ok(())
    }

    fn finish(self) -> Result<CapFile, Fault> {
        let node = self.node;
        let entries =
            self.entries.iter().map(|entry| entry.finish(node)).collect::<Result<_, _>>()?;
        Ok(CapFile { node, sockets: self.sockets, entries })
    }
}

impl DraftEntry<'_> {
    fn finish(&self, node: NodeId) -> Result<CapEntry, Fault> {
        let broken = |why: &dyn std::fmt::Display| {
            bad(
                self.line,
                format_args!("the capability {}: {why}: ask its giver for it again", self.name),
            )
        };
        let bytes = hex::decode(&self.digits).map_err(|e| broken(&e))?;
        let chain = Chain::decode(&bytes).map_err(|fault| broken(&fault))?;
        if chain.root().node != node {
            return Err(broken(&"it belongs to another node than the file"));
        }
        Ok(CapEntry { name: self.name.to_owned(), chain })
    }
}

fn read_node(line: Option<&&str>) -> Result<NodeId, Fault> {
    let mut node = [0; 32];
    line.and_then(|line| line.strip_prefix(NODE))
        .and_then(|digits| hex::decode_to_slice(digits, &mut node).ok())
        .ok_or_else(|| {
            bad(2, "expected \"node: \" and 64 hexadecimal digits: copy the file again")
        })?;
    Ok(NodeId(node))
}

/// All lines before the check, and the check's digits. Only blank lines may follow it.
fn split_check<'a, 'b>(lines: &'b [&'a str]) -> Result<(&'b [&'a str], &'a str), Fault> {
    let last = lines.iter().rposition(|line| !line.trim().is_empty()).unwrap_or(0);
    if let Some(at) = lines.iter().position(|line| line.starts_with(CHECK)).filter(|at| *at < last)
    {
        return Err(bad(at + 2, "nothing may follow the check line: remove what does"));
    }
    match lines[last].strip_prefix(CHECK) {
        Some(digits) if digits.trim_end().len() == 64 => Ok((&lines[..last], digits.trim_end())),
        Some(_) => Err(bad(last + 1, "truncated: the check is not complete: copy the file again")),
        None => Err(bad(last + 1, "truncated: the check line is missing: copy the file again")),
    }
}

/// What the check covers. Line ends count as one line feed each, so that a file survives systems
/// that change them.
fn checked_bytes(lines: &[&str]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect()
}

fn sockets_fit(path: &str) -> bool {
    !path.is_empty() && path.len() <= MAX_CHAIN_DIGITS && !path.chars().any(char::is_control)
}

fn name_fits(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.bytes().all(name_byte)
}

fn name_byte(byte: u8) -> bool {
    byte.is_ascii_graphic() && byte != b'[' && byte != b']'
}

fn fitting_name(name: &str) -> String {
    let fit = |c: char| {
        if u8::try_from(c).is_ok_and(name_byte) { c } else { '_' }
    };
    let fitting: String = name.chars().take(MAX_NAME_BYTES).map(fit).collect();
    if fitting.is_empty() { "_".to_owned() } else { fitting }
}

fn bad(line: usize, what: impl std::fmt::Display) -> Fault {
    Fault::malformed(format!("line {line}: {what}"))
}
