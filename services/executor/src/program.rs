//! What a module must be before the compiler sees it. Compiling takes time and memory that grow
//! with the module and faster with its largest function, so both are bounded here.

use distos_abi::Fault;
use wasmparser::{Encoding, Parser, Payload};

/// The largest module, in bytes.
pub(crate) const MAX_MODULE_BYTES: usize = 8 * 1024 * 1024;
/// The most functions in a module.
pub(crate) const MAX_FUNCTIONS: u32 = 50_000;
/// The largest function body, in bytes.
pub(crate) const MAX_FUNCTION_BYTES: usize = 512 * 1024;

/// Checks size and shape, reading each section's header once. [`Fault::Malformed`] says what is
/// wrong. It does not validate the code: the compiler does.
pub(crate) fn inspect(module: &[u8]) -> Result<(), Fault> {
    if module.len() > MAX_MODULE_BYTES {
        return Err(Fault::malformed(format!(
            "the module has {} bytes, at most {MAX_MODULE_BYTES} are taken",
            module.len()
        )));
    }
    if !module.starts_with(b"\0asm") {
        return Err(Fault::malformed(
            "not a WASM module: it does not start with '\\0asm' (build it with clang --target=wasm32-wasi)",
        ));
    }
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.map_err(|e| Fault::malformed(format!("not a WASM module: {e}")))?;
        inspect_payload(&payload)?;
    }
    Ok(())
}

fn inspect_payload(payload: &Payload<'_>) -> Result<(), Fault> {
    match payload {
        Payload::Version { encoding: Encoding::Component, .. } => {
            Err(Fault::malformed("a WASM component; only preview 1 command modules run here"))
        }
        Payload::CodeSectionStart { count, .. } if *count > MAX_FUNCTIONS => Err(Fault::malformed(
            format!("the module has {count} functions, at most {MAX_FUNCTIONS} are taken"),
        )),
        Payload::CodeSectionEntry(body) if body.range().len() > MAX_FUNCTION_BYTES => {
            Err(Fault::malformed(format!(
                "a function of {} bytes; at most {MAX_FUNCTION_BYTES} are taken",
                body.range().len()
            )))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(module: &[u8]) -> String {
        inspect(module).unwrap_err().to_string()
    }

    #[test]
    fn what_is_not_wasm_never_reaches_the_compiler() {
        assert!(refusal(b"").contains("not a WASM"));
        assert!(refusal(b"#!/bin/sh\necho").contains("clang"));
        assert!(refusal(b"\0asm\x01\0\0\0\xff\xff").contains("not a WASM"));
        assert!(refusal(b"\0asm\x0d\0\x01\0").contains("component"));
        assert!(refusal(&vec![0; MAX_MODULE_BYTES + 1]).contains("bytes"));
    }

    #[test]
    fn a_function_that_would_stall_the_compiler_is_refused() {
        let body = "(drop (i32.const 1))".repeat(MAX_FUNCTION_BYTES / 2);
        let module = wat::parse_str(format!("(module (func {body}))")).unwrap();
        assert!(refusal(&module).contains("function of"));
        let many = "(func)".repeat(MAX_FUNCTIONS as usize + 1);
        let module = wat::parse_str(format!("(module {many})")).unwrap();
        assert!(refusal(&module).contains("functions"));
        assert_eq!(inspect(&wat::parse_str("(module (func))").unwrap()), Ok(()));
    }
}
