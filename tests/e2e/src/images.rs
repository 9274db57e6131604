//! Images that differ from what a new user boots.

use crate::single_image;

/// The text with `with` in the place of the only `what`.
///
/// # Panics
/// There is none, or another one.
pub fn replaced(text: &str, what: &str, with: &str) -> String {
    assert_eq!(text.matches(what).count(), 1, "the image must have one {what}");
    text.replacen(what, with, 1)
}

/// The image with further settings (`key = "value", …`) of a service, vat or template.
///
/// # Panics
/// There is no such service.
pub fn with_settings(image: &str, service: &str, settings: &str) -> String {
    let table = format!("[vat.{service}.params]");
    if let Some(at) = image.find(&table) {
        let line = at + table.len();
        let lines = settings.split(", ").collect::<Vec<_>>().join("\n");
        return format!("{}\n{lines}{}", &image[..line], &image[line..]);
    }
    let section = ["vat", "template"].map(|kind| format!("[{kind}.{service}]"));
    let section = section.iter().find(|s| image.contains(s.as_str())).expect("a section");
    // A section has one line of settings at most.
    let at = image.find(section.as_str()).expect("it is there");
    let end = image[at + 1..].find("\n[").map_or(image.len(), |end| at + 1 + end);
    match image[at..end].find("params = { ") {
        Some(known) => {
            let known = at + known + "params = { ".len();
            format!("{}{settings}, {}", &image[..known], &image[known..])
        }
        None => {
            let line = at + section.len();
            format!("{}\nparams = {{ {settings} }}{}", &image[..line], &image[line..])
        }
    }
}

/// The image with these services writing their steps into the node's log, as `specs/` reads them.
pub fn traced(image: &str, services: &[&str]) -> String {
    let setting = "log = \"distos::trace=debug\"";
    services.iter().fold(image.to_owned(), |image, service| with_settings(&image, service, setting))
}

/// The image with evidence that is fresh for so long, and this program as its software TPM, also
/// where there is a hardware one.
pub fn with_tpm(freshness_ms: u64, program: &str) -> String {
    let image = replaced(&single_image(), "\"/dev/tpmrm0\"", "\"/dev/no-such-tpm\"");
    let image = replaced(&image, "\"60000\"", &format!("\"{freshness_ms}\""));
    replaced(&image, "\"/usr/bin/swtpm\"", &format!("\"{program}\""))
}

/// The same, with other arguments of the program than swtpm's: TOML strings, separated by commas.
///
/// # Panics
/// The image has no program with arguments.
pub fn with_tpm_args(freshness_ms: u64, program: &str, args: &str) -> String {
    let image = with_tpm(freshness_ms, program);
    let (before, rest) = image.split_once("args = [").expect("arguments");
    let (_, after) = rest.split_once(']').expect("the end of the arguments");
    format!("{before}args = [{args}]{after}")
}
