//! Texts in sections, manifests and TLC's configurations, reduced to the lines that are wanted.

/// The lines of `text` for which `keep` says so; it is told the section too. A section begins with
/// the line that `header` finds its name in, and what stands before the first has the name "".
pub fn kept<'t>(
    text: &'t str,
    header: impl Fn(&'t str) -> Option<&'t str>,
    keep: impl Fn(&str, &str) -> bool,
) -> String {
    let mut section = "";
    let mut kept = String::new();
    for line in text.lines() {
        section = header(line).unwrap_or(section);
        if keep(section, line) {
            kept.push_str(line);
            kept.push('\n');
        }
    }
    kept
}

/// The section of a manifest that begins here: `[name]`.
pub fn toml(line: &str) -> Option<&str> {
    line.strip_prefix('[')?.strip_suffix(']')
}

/// The section of a TLC configuration that begins here: `INVARIANTS`, also with what belongs to it
/// on the same line.
pub fn config(line: &str) -> Option<&str> {
    let first = line.split_whitespace().next()?;
    is_keyword(first).then_some(first)
}

/// A configuration without what it asks for: invariants and temporal properties.
pub fn without_questions(text: &str) -> String {
    kept(text, config, |section, _| !is_invariants(section) && !is_properties(section))
}

/// A configuration without its temporal properties.
pub fn without_properties(text: &str) -> String {
    kept(text, config, |section, _| !is_properties(section))
}

/// The names of a configuration's temporal properties.
pub fn properties(text: &str) -> Vec<String> {
    let asked = kept(text, config, |section, _| is_properties(section));
    let names = asked.lines().flat_map(|line| {
        let said = line.split("\\*").next().unwrap_or_default();
        said.split_whitespace().filter(|word| !is_keyword(word))
    });
    names.map(str::to_owned).collect()
}

/// Bounds may have names of one capital letter.
fn is_keyword(word: &str) -> bool {
    word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase())
}

fn is_invariants(section: &str) -> bool {
    section.starts_with("INVARIANT")
}

fn is_properties(section: &str) -> bool {
    section.starts_with("PROPERT")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "SPECIFICATION Spec\nCONSTANTS\n  A = 1\nINVARIANTS\n  X\n  Y\n\
                          CONSTRAINT Z\nPROPERTY P \\* why\n  Q\n";

    #[test]
    fn a_witness_is_looked_for_without_what_else_is_asked() {
        let kept = "SPECIFICATION Spec\nCONSTANTS\n  A = 1\nCONSTRAINT Z\n";
        assert_eq!(without_questions(CONFIG), kept);
    }

    #[test]
    fn several_traces_are_checked_with_the_invariants_and_without_the_property() {
        let kept = without_properties(CONFIG);
        assert!(kept.contains("INVARIANTS\n  X") && !kept.contains("  Q"), "{kept}");
        assert_eq!(properties(CONFIG), ["P", "Q"]);
    }

    #[test]
    fn a_manifest_keeps_the_sections_that_are_asked_for() {
        let text = "[a]\nx = 1\n\n[b.c]\ny = 2\n[d]\nz = 3\n";
        let kept = kept(text, toml, |section, _| section != "b.c");
        assert_eq!(kept, "[a]\nx = 1\n\n[d]\nz = 3\n");
    }
}
