//! Reads an image: the file that lists a node's services and who is given what.
//!
//! Pure: the text, and what the machine has, arrive as arguments. Every name is resolved and every
//! fault of the file is found here, with its line, before anything starts. What comes out is the
//! [`Plan`], which grants exactly what the file says (C3).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};

use distos_abi::{Rights, VatName};
use distos_host::plan::{
    Device, EdgePlan, ForeignPlan, KERNEL_NAME, OperatorGrant, Plan, Power, Profile, Program,
    VatLimits, VatPlan,
};
use distos_rpc::gift::REMOTE;
use distos_types::kind;
use toml_edit::{Document, Item, TableLike, Value};

use crate::vat;

/// What an image can refer to on this machine.
pub struct Machine<'a> {
    /// Names of the services that are part of this binary.
    pub builtins: &'a [&'a str],
    /// Whether a path is a file that may be executed.
    pub executable: &'a dyn Fn(&Path) -> bool,
    /// Whether a path exists.
    pub exists: &'a dyn Fn(&Path) -> bool,
}

/// One fault of an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, " ({})", self.hint) }
    }
}

/// Every fault of an image file, in the order of its lines; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageErrors(pub Vec<ImageError>);

impl fmt::Display for ImageErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ImageError::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ImageErrors {}

/// Settings that the node itself makes; an image may not.
const IMAGE_HASH: &str = "image_hash";
/// Bounds of a capability table, in slots.
const SLOTS: std::ops::RangeInclusive<i64> = 1024..=16 << 20;
const DEFAULT_SLOTS: i64 = 262_144;
/// The largest limit that an image may set: what a 64-bit machine can address.
const MAX_LIMIT: i64 = 1 << 47;

/// Reads the image in `text`. `file` is for messages and for programs named relative to it;
/// `data_dir` becomes the plan's. Who signed the image is not known here: the plan says "nobody".
///
/// A vat with devices also gets, as settings, `image_hash` (64 hexadecimal digits) and for each
/// device a setting of its name: `hardware`, or `software` if a foreign program stands behind it.
pub fn parse(
    text: &str,
    file: &Path,
    data_dir: &Path,
    machine: &Machine<'_>,
) -> Result<Plan, ImageErrors> {
    let mut reader = Reader { text, file, machine, errors: Vec::new() };
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(e) => {
            let line = line_of(text, e.span());
            let what = e.message().lines().collect::<Vec<_>>().join(", ");
            reader.error(line, what, "the file is not TOML");
            return Err(ImageErrors(reader.errors));
        }
    };
    let declared = reader.declarations(document.as_table());
    let plan = reader.resolve(declared, data_dir, *blake3::hash(text.as_bytes()).as_bytes());
    reader.errors.sort_by_key(|e| e.line);
    if reader.errors.is_empty() { Ok(plan) } else { Err(ImageErrors(reader.errors)) }
}

/// A table of the file, with the line at which it is named.
struct Section<'a> {
    label: String,
    line: usize,
    table: &'a dyn TableLike,
}

/// A value and the line on which it stands.
struct At<T> {
    line: usize,
    value: T,
}

struct Declared {
    name: String,
    slots: u32,
    vats: Vec<VatDecl>,
    templates: Vec<VatDecl>,
    devices: BTreeMap<String, DeviceDecl>,
    foreign: Vec<At<ForeignPlan>>,
    grants: Vec<GrantDecl>,
    operator: Vec<OperatorDecl>,
}

struct VatDecl {
    line: usize,
    plan: VatPlan,
    /// The vat's name for it, and the device.
    devices: Vec<At<(String, String)>>,
}

struct DeviceDecl {
    line: usize,
    path: Option<PathBuf>,
    otherwise: Option<At<String>>,
    udp: Option<SocketAddr>,
    /// Whether vats do without it on a machine that has none.
    spare: bool,
}

/// What is behind the devices that vats have.
#[derive(Default)]
struct Used {
    foreign: BTreeSet<String>,
    sockets: BTreeSet<String>,
}

struct GrantDecl {
    line: usize,
    to: At<String>,
    what: GrantWhat,
}

enum GrantWhat {
    Edge { name: String, of: At<Root>, rights: Rights },
    Power(At<Power>),
}

/// `VAT/KIND`.
struct Root {
    vat: String,
    kind: u16,
}

struct OperatorDecl {
    name: String,
    of: At<Root>,
    rights: Rights,
}

struct Reader<'a> {
    text: &'a str,
    file: &'a Path,
    machine: &'a Machine<'a>,
    errors: Vec<ImageError>,
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let end = span.map_or(0, |s| s.start.min(text.len()));
    text.as_bytes()[..end].iter().filter(|b| **b == b'\n').count() + 1
}

// --- what the file says --------------------------------------------------------------------------

impl<'a> Reader<'a> {
    fn error(&mut self, line: usize, what: impl Into<String>, hint: impl Into<String>) {
        let file = self.file.to_path_buf();
        self.errors.push(ImageError { file, line, what: what.into(), hint: hint.into() });
    }

    fn line(&self, section: &Section<'_>, key: &str) -> usize {
        let span = section.table.key(key).and_then(|k| k.span());
        let span = span.or_else(|| section.table.get(key).and_then(Item::span));
        span.map_or(section.line, |s| line_of(self.text, Some(s)))
    }

    fn declarations(&mut self, root: &'a dyn TableLike) -> Declared {
        let root = Section { label: "the image".into(), line: 1, table: root };
        let known = ["image", "grant", "operator", "vat", "template", "device", "foreign"];
        self.only(&root, &known);
        let (name, slots) = self.head(&root);
        let vats = self.each(&root, "vat", |r, name, s| r.vat(name, s));
        let templates = self.each(&root, "template", |r, name, s| r.vat(name, s));
        let devices = self.each(&root, "device", |r, name, s| Some((name, r.device(s)?)));
        let foreign = self.each(&root, "foreign", |r, name, s| r.foreign(name, s));
        let operator = self.each(&root, "operator", |r, name, s| r.operator(name, s));
        let grants = self.grants(&root);
        let devices = devices.into_iter().collect();
        Declared { name, slots, vats, templates, devices, foreign, grants, operator }
    }

    fn head(&mut self, root: &Section<'a>) -> (String, u32) {
        let Some(head) = self.section(root, "image") else {
            self.error(1, "there is no [image]", "start with: image = { name = \"single\" }");
            return (String::new(), 0);
        };
        self.only(&head, &["name", "slots"]);
        let name = self.required(&head, "name", "a name", |i| i.as_str().map(str::to_owned));
        let slots = self.optional(&head, "slots", "a whole number", Item::as_integer);
        let slots = slots.unwrap_or(At { line: head.line, value: DEFAULT_SLOTS });
        if !SLOTS.contains(&slots.value) {
            let what = format!("slots = {} is out of bounds", slots.value);
            self.error(slots.line, what, format!("{} to {}", SLOTS.start(), SLOTS.end()));
        }
        (name.map(|n| n.value).unwrap_or_default(), u32::try_from(slots.value).unwrap_or(0))
    }

    fn vat(&mut self, name: String, section: &Section<'a>) -> Option<VatDecl> {
        let known =
            ["program", "profile", "serves", "listen", "data", "devices", "params", "limits"];
        self.only(section, &known);
        if VatName::new(&name).is_err() || name.contains('/') {
            let what = format!("'{name}' is not a vat's name");
            self.error(section.line, what, "1 to 32 of a-z, 0-9 and '-'");
        }
        if name == KERNEL_NAME {
            let what = format!("no vat may be called '{name}'");
            self.error(section.line, what, "the kernel reports in that name");
        }
        let program = self.program(section);
        let profile = self.profile(section);
        let serves = self.serves(section);
        let flag = |r: &mut Self, key| {
            r.optional(section, key, "true or false", Item::as_bool).is_some_and(|v| v.value)
        };
        let (listen, data) = (flag(self, "listen"), flag(self, "data"));
        let devices = self.words(section, "devices");
        let params = self.words(section, "params");
        let limits = self.limits(section, default_limits(profile));
        // What a program of somebody else's takes a setting for is not known here.
        let builtin = matches!(program, Some(Program::Builtin(_)));
        for At { line, value: (key, text) } in params.iter().filter(|_| builtin) {
            if key == vat::LOG && vat::logged(text).is_err() {
                let what = format!("params.{key} = \"{text}\" says not what to log");
                self.error(*line, what, "such as \"distos::trace=debug\"");
            }
        }
        let params = params.into_iter().map(|p| p.value).collect();
        let plan = VatPlan {
            name,
            // If there is none, that is the fault: those who name the vat are not at fault too.
            program: program.unwrap_or_else(|| Program::Builtin(String::new())),
            serves,
            listen,
            data,
            profile,
            limits,
            devices: BTreeMap::new(),
            powers: Vec::new(),
            params,
        };
        Some(VatDecl { line: section.line, plan, devices })
    }

    /// A builtin by its name, or the path of an executable, relative to the image file.
    fn program(&mut self, section: &Section<'a>) -> Option<Program> {
        let found = self.required(section, "program", "a program's name or path", |i| {
            i.as_str().map(str::to_owned)
        })?;
        if !found.value.contains('/') {
            if self.machine.builtins.contains(&found.value.as_str()) {
                return Some(Program::Builtin(found.value));
            }
            let what = format!("there is no program '{}'", found.value);
            let hint =
                format!("builtin: {}; or the path of a file", self.machine.builtins.join(", "));
            self.error(found.line, what, hint);
            return None;
        }
        let base = self.file.parent().unwrap_or(Path::new(""));
        let path = base.join(&found.value);
        if !(self.machine.executable)(&path) {
            let what = format!("the program {} is missing", path.display());
            self.error(found.line, what, "it is not a file that may be executed");
            return None;
        }
        Some(Program::Path(path))
    }

    fn profile(&mut self, section: &Section<'a>) -> Profile {
        let found = self.optional(section, "profile", "a name", |i| i.as_str().map(str::to_owned));
        match found.as_ref().map(|f| f.value.as_str()) {
            None | Some("service") => Profile::Service,
            Some("jit") => Profile::Jit,
            Some("gpu") => Profile::Gpu,
            Some(other) => {
                let line = found.as_ref().map_or(section.line, |f| f.line);
                self.error(line, format!("there is no profile '{other}'"), "service, jit or gpu");
                Profile::Service
            }
        }
    }

    fn serves(&mut self, section: &Section<'a>) -> Vec<u16> {
        let mut kinds = Vec::new();
        for word in self.strings(section, "serves").unwrap_or_default() {
            match kind::parse(&word.value) {
                Some(kind) if kinds.contains(&kind.0) => {
                    self.error(word.line, format!("'{}' stands here twice", word.value), "");
                }
                Some(kind) => kinds.push(kind.0),
                None => {
                    let what = format!("there is no kind '{}'", word.value);
                    self.error(word.line, what, "kinds are listed in caps/types/src/kind.rs");
                }
            }
        }
        kinds
    }

    fn limits(&mut self, section: &Section<'a>, mut limits: VatLimits) -> VatLimits {
        let Some(inner) = self.section(section, "limits") else { return limits };
        self.only(&inner, &["memory_bytes", "open_files", "threads"]);
        let mut set = |key: &str, limit: &mut u64| {
            let Some(v) = self.optional(&inner, key, "a whole number", Item::as_integer) else {
                return;
            };
            match u64::try_from(v.value) {
                Ok(value) if (1..=MAX_LIMIT).contains(&v.value) => *limit = value,
                _ => self.error(v.line, format!("{key} = {} is out of bounds", v.value), ""),
            }
        };
        set("memory_bytes", &mut limits.memory_bytes);
        set("open_files", &mut limits.open_files);
        set("threads", &mut limits.threads);
        limits
    }

    fn device(&mut self, section: &Section<'a>) -> Option<DeviceDecl> {
        self.only(section, &["path", "else", "udp", "optional"]);
        let text = |i: &Item| i.as_str().map(str::to_owned);
        let path = self.optional(section, "path", "a path", text);
        let otherwise = self.optional(section, "else", "a foreign program's name", text);
        let address = |i: &Item| i.as_str().and_then(|text| text.parse().ok());
        let udp = self.optional(section, "udp", "an address, such as \"127.0.0.1:7400\"", address);
        if ["path", "else", "udp"].iter().all(|key| section.table.get(key).is_none()) {
            self.error(section.line, format!("{} is nowhere", section.label), "give it a path");
            return None;
        }
        if udp.is_some() && (path.is_some() || otherwise.is_some()) {
            let what = format!("{} is a socket and something else", section.label);
            self.error(section.line, what, "give it a udp address, or a path and else");
            return None;
        }
        let path = path.map(|p| PathBuf::from(p.value));
        let spare = self.optional(section, "optional", "true or false", Item::as_bool);
        let spare = spare.is_some_and(|spare| spare.value);
        if spare && (udp.is_some() || otherwise.is_some()) {
            let what = format!("{} is optional, and there on every machine", section.label);
            self.error(section.line, what, "remove optional");
        }
        Some(DeviceDecl { line: section.line, path, otherwise, udp: udp.map(|u| u.value), spare })
    }

    fn foreign(&mut self, name: String, section: &Section<'a>) -> Option<At<ForeignPlan>> {
        self.only(section, &["path", "args", "limits"]);
        if VatName::new(&name).is_err() || name.contains('/') {
            let what = format!("'{name}' is not a foreign program's name");
            self.error(section.line, what, "1 to 32 of a-z, 0-9 and '-'");
        }
        let path = self.required(section, "path", "a path", |i| i.as_str().map(PathBuf::from));
        let args = self.strings(section, "args").unwrap_or_default();
        let args = args.into_iter().map(|a| a.value).collect();
        let limits = self.limits(section, default_limits(Profile::Service));
        let path = path?;
        let plan = ForeignPlan { name, path: path.value, args, limits };
        Some(At { line: path.line, value: plan })
    }

    fn operator(&mut self, name: String, section: &Section<'a>) -> Option<OperatorDecl> {
        self.only(section, &["of", "rights"]);
        let of = self.root(section);
        let rights = self.rights(section);
        Some(OperatorDecl { name, of: of?, rights: rights? })
    }

    fn grants(&mut self, root: &Section<'a>) -> Vec<GrantDecl> {
        let mut grants = Vec::new();
        for (line, table) in self.tables(root, "grant") {
            let section = Section { label: "this grant".into(), line, table };
            grants.extend(self.grant(&section));
        }
        grants
    }

    fn grant(&mut self, section: &Section<'a>) -> Option<GrantDecl> {
        let text = |i: &Item| i.as_str().map(str::to_owned);
        let to = self.required(section, "to", "a vat's name", text);
        let what = if section.table.contains_key("kernel") {
            self.only(section, &["to", "kernel"]);
            GrantWhat::Power(self.power(section)?)
        } else {
            self.only(section, &["to", "name", "of", "rights"]);
            let name = self.required(section, "name", "the holder's name for it", text);
            let of = self.root(section);
            let rights = self.rights(section);
            GrantWhat::Edge { name: name?.value, of: of?, rights: rights? }
        };
        Some(GrantDecl { line: section.line, to: to?, what })
    }

    fn power(&mut self, section: &Section<'a>) -> Option<At<Power>> {
        let found = self.required(section, "kernel", "a power of the kernel", |i| {
            i.as_str().map(str::to_owned)
        })?;
        let words: Vec<&str> = found.value.split_whitespace().collect();
        let value = match words[..] {
            ["outbox"] => Power::Outbox,
            ["control"] => Power::Control,
            ["spawn", template] => Power::Spawn(template.to_owned()),
            _ => {
                let what = format!("the kernel has no power '{}'", found.value);
                self.error(found.line, what, "outbox, control, or spawn TEMPLATE");
                return None;
            }
        };
        Some(At { line: found.line, value })
    }

    fn root(&mut self, section: &Section<'a>) -> Option<At<Root>> {
        let of = self.required(section, "of", "VAT/KIND", |i| i.as_str().map(str::to_owned))?;
        let Some((vat, kind_name)) = of.value.split_once('/') else {
            let what = format!("'{}' does not name an object", of.value);
            self.error(of.line, what, "write VAT/KIND, such as memory/regions");
            return None;
        };
        let Some(kind) = kind::parse(kind_name) else {
            let what = format!("there is no kind '{kind_name}'");
            self.error(of.line, what, "kinds are listed in caps/types/src/kind.rs");
            return None;
        };
        Some(At { line: of.line, value: Root { vat: vat.to_owned(), kind: kind.0 } })
    }

    fn rights(&mut self, section: &Section<'a>) -> Option<Rights> {
        if !section.table.contains_key("rights") {
            let what = format!("{} has no rights", section.label);
            self.error(section.line, what, "rights = [] if none is meant");
            return None;
        }
        let mut rights = Rights::NONE;
        for word in self.strings(section, "rights")? {
            match Rights::parse(&word.value) {
                Ok(right) => rights = rights.join(right),
                Err(fault) => self.error(word.line, fault_text(&fault), ""),
            }
        }
        Some(rights)
    }
}

/// A fault's text without the fault's own name in front.
fn fault_text(fault: &distos_abi::Fault) -> String {
    let text = fault.to_string();
    text.split_once(": ").map_or(text.clone(), |(_, rest)| rest.to_owned())
}

fn default_limits(profile: Profile) -> VatLimits {
    match profile {
        Profile::Service => VatLimits { memory_bytes: 2 << 30, open_files: 512, threads: 64 },
        // Compiled programs and their instances live in one executor.
        Profile::Jit => VatLimits { memory_bytes: 8 << 30, open_files: 256, threads: 64 },
        // The vendor's library maps large ranges and starts threads of its own.
        Profile::Gpu => VatLimits { memory_bytes: 8 << 30, open_files: 512, threads: 64 },
    }
}

// --- reading TOML with lines ---------------------------------------------------------------------

impl<'a> Reader<'a> {
    /// Refuses keys that are not in `known`: a misspelt key must not silently grant or withhold.
    fn only(&mut self, section: &Section<'_>, known: &[&str]) {
        let unknown: Vec<String> = section
            .table
            .iter()
            .map(|(key, _)| key.to_owned())
            .filter(|key| !known.contains(&key.as_str()))
            .collect();
        for key in unknown {
            let hint = match nearest(&key, known) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("known: {}", known.join(", ")),
            };
            let line = self.line(section, &key);
            self.error(line, format!("unknown key '{key}' in {}", section.label), hint);
        }
    }

    fn optional<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        expected: &str,
        read: impl Fn(&Item) -> Option<T>,
    ) -> Option<At<T>> {
        let item = section.table.get(key)?;
        let line = self.line(section, key);
        let value = read(item);
        if value.is_none() {
            self.error(
                line,
                format!("{key} is a {}", item.type_name()),
                format!("it must be {expected}"),
            );
        }
        value.map(|value| At { line, value })
    }

    fn required<T>(
        &mut self,
        section: &Section<'_>,
        key: &str,
        expected: &str,
        read: impl Fn(&Item) -> Option<T>,
    ) -> Option<At<T>> {
        if section.table.get(key).is_none() {
            let what = format!("{} lacks '{key}'", section.label);
            self.error(section.line, what, format!("{key} = {expected}"));
            return None;
        }
        self.optional(section, key, expected, read)
    }

    fn section(&mut self, outer: &Section<'a>, key: &str) -> Option<Section<'a>> {
        let item = outer.table.get(key)?;
        let line = self.line(outer, key);
        match item.as_table_like() {
            Some(table) => Some(Section { label: format!("[{key}]"), line, table }),
            None => {
                self.error(line, format!("{key} is a {}", item.type_name()), "it must be a table");
                None
            }
        }
    }

    /// Reads every table inside the table `key`, in the order of the file.
    fn each<T>(
        &mut self,
        outer: &Section<'a>,
        key: &str,
        read: impl Fn(&mut Self, String, &Section<'a>) -> Option<T>,
    ) -> Vec<T> {
        let Some(all) = self.section(outer, key) else { return Vec::new() };
        let mut found = Vec::new();
        for (name, item) in all.table.iter() {
            let line = self.line(&all, name);
            let label = format!("[{key}.{name}]");
            match item.as_table_like() {
                Some(table) => {
                    found.extend(read(self, name.to_owned(), &Section { label, line, table }));
                }
                None => self.error(
                    line,
                    format!("{label} is a {}", item.type_name()),
                    "it must be a table",
                ),
            }
        }
        found
    }

    /// The tables of an array, whichever of TOML's two notations it is written in.
    fn tables(&mut self, outer: &Section<'a>, key: &str) -> Vec<(usize, &'a dyn TableLike)> {
        let Some(item) = outer.table.get(key) else { return Vec::new() };
        let mut found = Vec::new();
        match item {
            Item::ArrayOfTables(tables) => {
                for table in tables {
                    found.push((line_of(self.text, table.span()), table as &dyn TableLike));
                }
            }
            Item::Value(Value::Array(array)) => {
                for value in array {
                    let line = line_of(self.text, value.span());
                    match value.as_inline_table() {
                        Some(table) => found.push((line, table as &dyn TableLike)),
                        None => self.error(
                            line,
                            format!("{key} holds a {}", value.type_name()),
                            "it must hold tables",
                        ),
                    }
                }
            }
            _ => {
                let line = self.line(outer, key);
                self.error(
                    line,
                    format!("{key} is a {}", item.type_name()),
                    "it must be an array of tables",
                );
            }
        }
        found
    }

    fn strings(&mut self, section: &Section<'_>, key: &str) -> Option<Vec<At<String>>> {
        let array =
            self.optional(section, key, "an array of strings", |i| i.as_array().cloned())?.value;
        let mut words = Vec::new();
        for value in &array {
            let line = line_of(self.text, value.span());
            match value.as_str() {
                Some(text) => words.push(At { line, value: text.to_owned() }),
                None => self.error(
                    line,
                    format!("{key} holds a {}", value.type_name()),
                    "it must hold strings",
                ),
            }
        }
        Some(words)
    }

    /// A table of plain settings.
    fn words(&mut self, section: &Section<'a>, key: &str) -> Vec<At<(String, String)>> {
        let Some(inner) = self.section(section, key) else { return Vec::new() };
        let mut words = Vec::new();
        for (name, item) in inner.table.iter() {
            let line = self.line(&inner, name);
            let text = match item.as_value() {
                Some(Value::String(text)) => text.value().clone(),
                Some(Value::Integer(number)) => number.value().to_string(),
                Some(Value::Boolean(flag)) => flag.value().to_string(),
                _ => {
                    let what = format!("{key}.{name} is a {}", item.type_name());
                    self.error(line, what, "it must be a string, a whole number or a boolean");
                    continue;
                }
            };
            words.push(At { line, value: (name.to_owned(), text) });
        }
        words
    }
}

/// The known word that `word` is at most two slips away from.
fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    known.iter().map(|k| (distance(word, k), *k)).min().filter(|(d, _)| *d <= 2).map(|(_, k)| k)
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}

// --- what it means -------------------------------------------------------------------------------

impl Reader<'_> {
    fn resolve(&mut self, declared: Declared, data_dir: &Path, image_hash: [u8; 32]) -> Plan {
        self.distinct(&declared);
        let Declared { name, slots, mut vats, mut templates, devices, foreign, grants, operator } =
            declared;
        let mut used = Used::default();
        for vat in vats.iter_mut() {
            self.attach(vat, &devices, &foreign, &image_hash, &mut used);
        }
        // Of one address there is one socket, and of a template there are many instances.
        used.sockets = devices.iter().filter(|d| d.1.udp.is_some()).map(|d| d.0.clone()).collect();
        for template in &mut templates {
            if template.plan.name == REMOTE {
                let what = format!("no template may be called '{REMOTE}'");
                self.error(template.line, what, "so are those called who come over the network");
            }
            self.attach(template, &devices, &foreign, &image_hash, &mut used);
        }
        let foreign = self.used_foreign(foreign, &devices, &used.foreign);
        let edges = self.edges(&grants, &mut vats, &mut templates);
        let operator = self.operator_grants(operator, &vats, &templates);
        let order = self.start_order(&vats, &templates, &edges);
        vats.sort_by_key(|v| order.iter().position(|n| *n == v.plan.name));
        let edges = edges.into_iter().map(|e| e.value).collect();
        Plan {
            image: name,
            image_hash,
            image_signer: None,
            data_dir: data_dir.to_path_buf(),
            slots,
            vats: vats.into_iter().map(|v| v.plan).collect(),
            templates: templates.into_iter().map(|v| v.plan).collect(),
            foreign,
            edges,
            operator,
            operator_key: None,
        }
    }

    /// Vats, templates and foreign programs share one space of names: sockets, directories and
    /// `status` lines are called after them.
    fn distinct(&mut self, declared: &Declared) {
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        let vats = declared.vats.iter().chain(&declared.templates);
        let vats = vats.map(|v| (v.plan.name.clone(), v.line));
        let foreign = declared.foreign.iter().map(|f| (f.value.name.clone(), f.line));
        for (name, line) in vats.chain(foreign).collect::<Vec<_>>() {
            if let Some(first) = seen.get(&name) {
                let hint = format!("line {first} has that name");
                self.error(line, format!("a second thing is called '{name}'"), hint);
            } else {
                seen.insert(name, line);
            }
        }
    }

    fn attach(
        &mut self,
        vat: &mut VatDecl,
        devices: &BTreeMap<String, DeviceDecl>,
        foreign: &[At<ForeignPlan>],
        image_hash: &[u8; 32],
        used: &mut Used,
    ) {
        for At { line, value: (name, device) } in &vat.devices {
            let Some(found) = devices.get(device) else {
                self.error(*line, format!("there is no device '{device}'"), "add [device.NAME]");
                continue;
            };
            let is_there = found.path.as_ref().is_none_or(|path| (self.machine.exists)(path));
            if found.spare && !is_there {
                continue;
            }
            let Some(source) = self.source(device, found, foreign) else { continue };
            let class = match &source {
                Device::Path(_) => "hardware",
                // Of port 0 Linux makes another socket each time.
                Device::Udp(at) if at.port() != 0 && !used.sockets.insert(device.clone()) => {
                    let what = format!("the socket '{device}' is for one vat");
                    let hint = "give each an address of its own; for a template, with port 0";
                    self.error(*line, what, hint);
                    continue;
                }
                Device::Udp(_) => "network",
                Device::Foreign(behind) => {
                    used.foreign.insert(behind.clone());
                    "software"
                }
            };
            vat.plan.devices.insert(name.clone(), source);
            for (key, value) in [(name.as_str(), class), (IMAGE_HASH, &hex::encode(image_hash))] {
                let other = vat.plan.params.insert(key.to_owned(), value.to_owned());
                if other.is_some_and(|o| o != value) {
                    let what = format!("the setting '{key}' is the node's to make");
                    self.error(vat.line, what, "remove it from params");
                }
            }
        }
    }

    fn source(
        &mut self,
        name: &str,
        device: &DeviceDecl,
        foreign: &[At<ForeignPlan>],
    ) -> Option<Device> {
        if let Some(address) = device.udp {
            return Some(Device::Udp(address));
        }
        if let Some(path) = device.path.as_ref().filter(|p| (self.machine.exists)(p)) {
            return Some(Device::Path(path.clone()));
        }
        let Some(otherwise) = &device.otherwise else {
            let what = format!("this machine has no {name}");
            let hint = "name a foreign program to stand in for it with else = NAME";
            self.error(device.line, what, hint);
            return None;
        };
        foreign
            .iter()
            .any(|f| f.value.name == otherwise.value)
            .then(|| Device::Foreign(otherwise.value.clone()))
    }

    /// The foreign programs that this boot needs, each of which must be there.
    fn used_foreign(
        &mut self,
        foreign: Vec<At<ForeignPlan>>,
        devices: &BTreeMap<String, DeviceDecl>,
        used: &BTreeSet<String>,
    ) -> Vec<ForeignPlan> {
        for otherwise in devices.values().filter_map(|d| d.otherwise.as_ref()) {
            if !foreign.iter().any(|f| f.value.name == otherwise.value) {
                let what = format!("there is no foreign program '{}'", otherwise.value);
                self.error(otherwise.line, what, "add [foreign.NAME]");
            }
        }
        for At { line, value } in &foreign {
            let named =
                |d: &DeviceDecl| d.otherwise.as_ref().is_some_and(|o| o.value == value.name);
            if !devices.values().any(named) {
                let what = format!("no device is served by '{}'", value.name);
                self.error(*line, what, "name it in a device's else");
            } else if used.contains(&value.name) && !(self.machine.executable)(&value.path) {
                let what = format!("the program {} is missing", value.path.display());
                self.error(
                    *line,
                    what,
                    "install it (.ci/setup installs what the images here need)",
                );
            }
        }
        foreign.into_iter().map(|f| f.value).filter(|f| used.contains(&f.name)).collect()
    }

    /// Resolves each grant; powers go to their vats, the rest are edges.
    fn edges(
        &mut self,
        grants: &[GrantDecl],
        vats: &mut [VatDecl],
        templates: &mut [VatDecl],
    ) -> Vec<At<EdgePlan>> {
        let mut edges: Vec<At<EdgePlan>> = Vec::new();
        for grant in grants {
            if !vats.iter().chain(templates.iter()).any(|v| v.plan.name == grant.to.value) {
                let what = format!("there is no vat or template '{}'", grant.to.value);
                self.error(grant.to.line, what, "");
                continue;
            }
            match &grant.what {
                GrantWhat::Power(power) => self.give_power(grant, power, vats, templates),
                GrantWhat::Edge { name, of, rights } => {
                    if !self.is_served(of, vats, templates) {
                        continue;
                    }
                    let same = |e: &&At<EdgePlan>| {
                        e.value.holder == grant.to.value && e.value.name == *name
                    };
                    if let Some(first) = edges.iter().find(same) {
                        let hint = format!("line {} has that name", first.line);
                        let what = format!("'{}' already holds a '{name}'", grant.to.value);
                        self.error(grant.line, what, hint);
                        continue;
                    }
                    let value = EdgePlan {
                        name: name.clone(),
                        holder: grant.to.value.clone(),
                        home: of.value.vat.clone(),
                        kind: of.value.kind,
                        rights: rights.0,
                    };
                    edges.push(At { line: grant.line, value });
                }
            }
        }
        edges
    }

    fn give_power(
        &mut self,
        grant: &GrantDecl,
        power: &At<Power>,
        vats: &mut [VatDecl],
        templates: &mut [VatDecl],
    ) {
        if let Power::Spawn(template) = &power.value
            && !templates.iter().any(|t| t.plan.name == *template)
        {
            self.error(
                power.line,
                format!("there is no template '{template}'"),
                "add [template.NAME]",
            );
            return;
        }
        let holder = vats.iter_mut().chain(templates).find(|v| v.plan.name == grant.to.value);
        let Some(holder) = holder else { return };
        if holder.plan.powers.contains(&power.value) {
            self.error(power.line, format!("'{}' has this power already", grant.to.value), "");
        } else {
            holder.plan.powers.push(power.value.clone());
        }
    }

    fn is_served(&mut self, of: &At<Root>, vats: &[VatDecl], templates: &[VatDecl]) -> bool {
        let name = &of.value.vat;
        let Some(home) = vats.iter().chain(templates).find(|v| v.plan.name == *name) else {
            self.error(of.line, format!("there is no vat or template '{name}'"), "");
            return false;
        };
        let served = home.plan.serves.contains(&of.value.kind);
        if !served {
            let kind = kind::name(distos_abi::Kind(of.value.kind));
            let hint = format!("line {} lists what it serves", home.line);
            self.error(of.line, format!("'{name}' does not serve '{kind}'"), hint);
        }
        served
    }

    fn operator_grants(
        &mut self,
        operator: Vec<OperatorDecl>,
        vats: &[VatDecl],
        templates: &[VatDecl],
    ) -> Vec<OperatorGrant> {
        let mut grants = Vec::new();
        for OperatorDecl { name, of, rights } in operator {
            if !self.is_served(&of, vats, templates) {
                continue;
            }
            let Root { vat, kind } = of.value;
            match vats.iter().find(|v| v.plan.name == vat) {
                Some(home) if home.plan.listen => {
                    grants.push(OperatorGrant { name, vat, kind, rights: rights.0 });
                }
                Some(home) => {
                    let hint = format!("add listen = true at line {}", home.line);
                    self.error(of.line, format!("nobody can connect to '{vat}'"), hint);
                }
                None => {
                    let what =
                        format!("'{vat}' is a template: it is not there when the node starts");
                    self.error(of.line, what, "grant the vat that starts it");
                }
            }
        }
        grants
    }

    /// Every vat and template after all that it may call. A cycle has no such order.
    fn start_order(
        &mut self,
        vats: &[VatDecl],
        templates: &[VatDecl],
        edges: &[At<EdgePlan>],
    ) -> Vec<String> {
        let mut waiting: Vec<&str> =
            vats.iter().chain(templates).map(|v| v.plan.name.as_str()).collect();
        let mut order: Vec<String> = Vec::new();
        while !waiting.is_empty() {
            let is_free = |name: &&str| {
                !edges
                    .iter()
                    .any(|e| e.value.holder == **name && waiting.contains(&e.value.home.as_str()))
            };
            let Some(at) = waiting.iter().position(is_free) else { break };
            order.push(waiting.remove(at).to_owned());
        }
        if let Some(start) = waiting.first() {
            self.cycle(start, &waiting, edges);
        }
        order
    }

    /// Reports one cycle among the vats in `waiting`, each of which may call another of them.
    fn cycle(&mut self, start: &str, waiting: &[&str], edges: &[At<EdgePlan>]) {
        let mut path: Vec<&str> = vec![start];
        loop {
            let here = path[path.len() - 1];
            let next = edges
                .iter()
                .find(|e| e.value.holder == here && waiting.contains(&e.value.home.as_str()));
            let Some(next) = next else { return };
            let home = next.value.home.as_str();
            let closed = path.iter().position(|p| *p == home);
            path.push(home);
            if let Some(from) = closed {
                let what = format!("a cycle of calls: {}", path[from..].join(" → "));
                self.error(next.line, what, "calls go one way: remove one of these grants");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILTINS: [&str; 3] = ["memory", "scheduler", "executor"];

    fn read(text: &str) -> Result<Plan, ImageErrors> {
        let machine = Machine {
            builtins: &BUILTINS,
            executable: &|p| p == Path::new("/usr/bin/swtpm"),
            exists: &|p| p == Path::new("/dev/null"),
        };
        parse(text, Path::new("x.toml"), Path::new("/d"), &machine)
    }

    /// The one error of `text`, whose line is the one that holds the mark `#!`.
    fn only_error(text: &str) -> ImageError {
        let errors = read(text).unwrap_err().0;
        assert_eq!(errors.len(), 1, "{errors:?}");
        let marked = text.lines().position(|l| l.contains("#!")).unwrap() + 1;
        assert_eq!(errors[0].line, marked, "{}", errors[0]);
        errors[0].clone()
    }

    const BASE: &str = r#"
image = { name = "t" }
grant = [ { to = "scheduler", name = "memory", of = "memory/regions", rights = ["read"] } ]
[vat.scheduler]
program = "scheduler"
serves = ["queue"]
[vat.memory]
program = "memory"
serves = ["regions"]
"#;

    fn with(more: &str) -> String {
        format!("{BASE}{more}")
    }

    #[test]
    fn the_homes_of_edges_start_before_their_holders() {
        let plan = read(BASE).unwrap();
        let names: Vec<&str> = plan.vats.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["memory", "scheduler"]);
        assert_eq!(plan.slots, 262_144);
        assert_eq!(plan.image_hash, *blake3::hash(BASE.as_bytes()).as_bytes());
        let edge = EdgePlan {
            name: "memory".into(),
            holder: "scheduler".into(),
            home: "memory".into(),
            kind: kind::REGIONS.0,
            rights: Rights::READ.0,
        };
        assert_eq!(plan.edges, [edge]);
    }

    #[test]
    fn both_notations_of_an_array_of_tables_are_one_image() {
        let long = r#"
image = { name = "t" }
[[grant]]
to = "scheduler"
name = "memory"
of = "memory/regions"
rights = ["read"]
[vat.scheduler]
program = "scheduler"
[vat.memory]
program = "memory"
serves = ["regions"]
"#;
        assert_eq!(read(long).unwrap().edges, read(BASE).unwrap().edges);
    }

    #[test]
    fn an_author_learns_which_key_is_unknown_and_what_was_meant() {
        let error = only_error(&with("lisen = true #!\n"));
        assert_eq!(
            error.to_string(),
            "x.toml:10: unknown key 'lisen' in [vat.memory] (did you mean 'listen'?)"
        );
        assert!(only_error(&with("[vats.x] #!\n")).what.contains("vats"));
        assert!(only_error("image = { name = \"t\", slot = 4096 } #!\n").hint.contains("slots"));
    }

    #[test]
    fn a_wrong_type_is_named() {
        let error = only_error(&with("listen = \"yes\" #!\n"));
        assert_eq!(error.what, "listen is a string");
        assert_eq!(error.hint, "it must be true or false");
        assert!(only_error(&with("limits = 5 #!\n")).hint.contains("table"));
        assert!(only_error(&with("params = { a = [1] } #!\n")).what.contains("params.a"));
        let error = only_error(&with("params = { log = \"distos::trace=loud\" } #!\n"));
        assert!(error.what.contains("params.log") && error.hint.contains("debug"), "{error}");
        let error = only_error("image = { name = \"t\" }\ngrant = [\n  5, #!\n]\n");
        assert!(error.what.contains("integer"));
        assert!(only_error("image = { name = \"t\", slots = 1 } #!\n").what.contains("slots"));
    }

    /// Otherwise it could write into the audit log what the kernel alone may say there.
    #[test]
    fn no_vat_passes_for_the_kernel() {
        for kind in ["vat", "template"] {
            let error = only_error(&with(&format!("[{kind}.kernel] #!\nprogram = \"memory\"\n")));
            assert!(error.what.contains("'kernel'"), "{error}");
        }
    }

    #[test]
    fn what_is_not_toml_has_its_line() {
        assert_eq!(read("image = { name = \"t\" }\n[vat.x\n").unwrap_err().0[0].line, 2);
        let error = only_error(&with("[vat.memory] #!\nprogram = \"memory\"\n"));
        assert!(error.what.contains("duplicate"), "{error}");
        assert_eq!(read("").unwrap_err().0[0].line, 1);
    }

    #[test]
    fn a_missing_program_is_found_before_anything_starts() {
        let error = only_error(&with("[vat.x]\nprogram = \"nosuch\" #!\n"));
        assert!(error.hint.contains("memory, scheduler, executor"));
        let error = only_error(&with("[vat.x]\nprogram = \"bin/nosuch\" #!\n"));
        assert!(error.what.contains("bin/nosuch"));
        assert!(only_error(&with("[vat.x] #!\ndata = true\n")).what.contains("lacks 'program'"));
        let plan = read(&with("[vat.x]\nprogram = \"/usr/bin/swtpm\"\n")).unwrap();
        assert_eq!(plan.vats[2].program, Program::Path("/usr/bin/swtpm".into()));
    }

    fn grant(line: &str) -> String {
        BASE.replace("rights = [\"read\"] } ]", &format!("rights = [\"read\"] }},\n{line} #!\n]"))
    }

    #[test]
    fn a_grant_of_what_is_not_served_is_refused() {
        let text = grant(r#"{ to = "scheduler", name = "log", of = "memory/log", rights = [] }"#);
        assert_eq!(only_error(&text).what, "'memory' does not serve 'log'");
        let text = grant(r#"{ to = "scheduler", name = "log", of = "audit/log", rights = [] }"#);
        assert!(only_error(&text).what.contains("'audit'"));
        let text = grant(r#"{ to = "nobody", name = "m", of = "memory/regions", rights = [] }"#);
        assert!(only_error(&text).what.contains("'nobody'"));
        let text =
            grant(r#"{ to = "scheduler", name = "m", of = "memory/regions", rights = ["fly"] }"#);
        assert!(only_error(&text).what.contains("'fly'"));
        let text = grant(r#"{ to = "scheduler", name = "m", of = "memory/regions" }"#);
        assert!(only_error(&text).hint.contains("rights = []"));
        let text = grant(r#"{ to = "scheduler", name = "m", of = "memory", rights = [] }"#);
        assert!(only_error(&text).hint.contains("VAT/KIND"));
        let text = grant(r#"{ to = "scheduler", kernel = "spawn executor" }"#);
        assert!(only_error(&text).what.contains("template 'executor'"));
        let text = grant(r#"{ to = "scheduler", kernel = "root" }"#);
        assert!(only_error(&text).what.contains("power 'root'"));
    }

    #[test]
    fn two_things_with_one_name_are_refused() {
        let text =
            grant(r#"{ to = "scheduler", name = "memory", of = "memory/regions", rights = [] }"#);
        assert!(only_error(&text).what.contains("already holds"));
        let error = only_error(&with("[template.memory] #!\nprogram = \"memory\"\n"));
        assert!(error.what.contains("'memory'"));
        let error =
            only_error(&with("[vat.x]\nprogram = \"memory\"\nserves = [\"log\", \"log\"] #!\n"));
        assert!(error.what.contains("twice"));
    }

    #[test]
    fn a_socket_is_one_vats_alone() {
        let socket = "[device.quic]\nudp = \"127.0.0.1:7400\"\n";
        let vat = |name: &str, mark: &str| {
            format!("[vat.{name}]\nprogram = \"memory\"\ndevices = {{ quic = \"quic\" }} {mark}\n")
        };
        let plan = read(&with(&format!("{socket}{}", vat("x", "")))).unwrap();
        let address = Device::Udp("127.0.0.1:7400".parse().unwrap());
        let x = plan.vats.iter().find(|vat| vat.name == "x").unwrap();
        assert_eq!(x.devices["quic"], address);
        assert_eq!(x.params["quic"], "network");
        let error = only_error(&with(&format!("{socket}{}{}", vat("x", ""), vat("y", "#!"))));
        assert!(error.what.contains("for one vat"), "{}", error.what);
        let template = vat("y", "#!").replace("vat.", "template.");
        assert!(only_error(&with(&format!("{socket}{template}"))).what.contains("for one vat"));
        let any = socket.replace("7400", "0");
        let plan = read(&with(&format!("{any}{}{template}", vat("x", "")))).unwrap();
        assert!(plan.templates.iter().any(|t| t.devices.contains_key("quic")));
        // The kernel knows whoever comes over the network by a name of that form.
        let peer = "[template.peer] #!\nprogram = \"memory\"\n";
        assert!(only_error(&with(peer)).what.contains("'peer'"));
        let error = only_error(&with("[device.quic]\nudp = \"memory:7400\" #!\n"));
        assert!(error.hint.contains("address"), "{}", error.hint);
        let both = "[device.quic] #!\nudp = \"127.0.0.1:1\"\npath = \"/dev/null\"\n";
        assert!(only_error(&with(both)).what.contains("something else"));
    }

    #[test]
    fn a_cycle_of_calls_is_shown_even_through_a_template() {
        let text = grant(r#"{ to = "memory", name = "q", of = "scheduler/queue", rights = [] }"#);
        let error = only_error(&text);
        assert_eq!(error.what, "a cycle of calls: scheduler → memory → scheduler");
        let text = format!(
            "{}[template.executor]\nprogram = \"executor\"\nserves = [\"executor\"]\n",
            grant(
                r#"{ to = "memory", name = "e", of = "executor/executor", rights = [] }, { to = "executor", name = "q", of = "scheduler/queue", rights = [] }"#
            )
        );
        assert!(only_error(&text).what.contains("→ executor →"));
    }

    #[test]
    fn a_device_is_real_or_has_a_stand_in() {
        let vat = "devices = { tpm = \"tpm\" }\n";
        assert!(
            only_error(&with("devices = { tpm = \"tpm\" } #!\n")).what.contains("device 'tpm'")
        );
        let text = with(&format!("{vat}[device.tpm] #!\npath = \"/dev/tpmrm0\"\n"));
        assert!(only_error(&text).what.contains("no tpm"));
        let plan = read(&with(&format!("{vat}[device.tpm]\npath = \"/dev/null\"\n"))).unwrap();
        assert_eq!(plan.vats[0].devices["tpm"], Device::Path("/dev/null".into()));
        assert_eq!(plan.vats[0].params["tpm"], "hardware");
        let soft = format!("{vat}[device.tpm]\npath = \"/dev/tpmrm0\"\nelse = \"swtpm\"");
        let text = with(&format!("{soft} #!\n"));
        assert!(only_error(&text).what.contains("foreign program 'swtpm'"));
        let text = with(&format!("{soft}\n[foreign.swtpm]\npath = \"/nosuch\" #!\n"));
        assert!(only_error(&text).what.contains("/nosuch is missing"));
        let text = with(&format!("{soft}\n[foreign.swtpm]\npath = \"/usr/bin/swtpm\"\n"));
        let plan = read(&text).unwrap();
        assert_eq!(plan.vats[0].params["tpm"], "software");
        assert_eq!(plan.vats[0].params["image_hash"], hex::encode(plan.image_hash));
        assert_eq!(plan.foreign[0].name, "swtpm");
        let text = with("[foreign.swtpm]\npath = \"/usr/bin/swtpm\" #!\n");
        assert!(only_error(&text).what.contains("no device"));
    }

    #[test]
    fn the_operator_is_given_only_what_it_can_reach() {
        let text = with("[operator]\nr = { of = \"memory/regions\", rights = [] } #!\n");
        assert!(only_error(&text).hint.contains("listen = true"));
        let text = with("listen = true\n[operator]\nr = { of = \"memory/log\", rights = [] } #!\n");
        assert!(only_error(&text).what.contains("does not serve"));
        let plan = read(&with(
            "listen = true\n[operator]\nr = { of = \"memory/regions\", rights = [\"list\"] }\n",
        ));
        assert_eq!(plan.unwrap().operator[0].rights, Rights::LIST.0);
    }

    #[test]
    fn all_faults_are_told_at_once_in_the_order_of_lines() {
        let text = with("lisen = true\n[vat.x]\nprogram = \"nosuch\"\n");
        let lines: Vec<usize> = read(&text).unwrap_err().0.iter().map(|e| e.line).collect();
        assert_eq!(lines, [10, 12]);
    }

    #[test]
    fn the_image_in_the_repository_boots_every_service_with_exactly_its_edges() {
        let text = include_str!("../../../images/single.toml");
        let machine = Machine {
            builtins: &crate::vat::PROGRAMS,
            executable: &|p| p == Path::new("/usr/bin/swtpm"),
            exists: &|_| false,
        };
        let plan = parse(text, Path::new("single.toml"), Path::new("/d"), &machine).unwrap();
        let names: Vec<&str> = plan.vats.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(
            names,
            ["memory", "attestation", "audit", "gpu", "secrets", "node", "scheduler"]
        );
        let edges: Vec<String> = plan
            .edges
            .iter()
            .map(|e| format!("{} {} {} {}", e.holder, e.name, e.home, Rights(e.rights)))
            .collect();
        assert_eq!(
            edges,
            [
                "scheduler attestation attestation read+attest",
                "secrets attestation attestation read+create",
                "scheduler executor executor run",
                "executor memory memory none",
                "executor secrets secrets none",
            ]
        );
        let powers: Vec<(&str, &[Power])> = plan
            .vats
            .iter()
            .filter(|v| !v.powers.is_empty())
            .map(|v| (v.name.as_str(), v.powers.as_slice()))
            .collect();
        assert_eq!(
            powers,
            [
                ("audit", &[Power::Outbox][..]),
                ("node", &[Power::Control][..]),
                ("scheduler", &[Power::Spawn("executor".into())][..]),
            ]
        );
        assert_eq!(plan.templates[0].profile, Profile::Jit);
        assert_eq!(plan.foreign[0].name, "swtpm");
        let operator: Vec<&str> = plan.operator.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(operator, ["regions", "queue", "attestation", "log", "gpus", "secrets", "node"]);
        assert!(plan.vats.iter().all(|v| v.listen));
    }
}
