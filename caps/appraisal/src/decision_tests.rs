//! What policies can and cannot do.

use proptest::prelude::*;

use super::*;

const VERIFIER: NodeId = NodeId([1; 32]);
const NODE: NodeId = NodeId([2; 32]);
/// Permits whatever can be permitted, and looks at nothing.
const CARELESS: &str = r#"@id("all") permit (principal, action, resource);"#;

fn policies(text: &str) -> Policies {
    let file = format!("// distos-policy: test\n// version: 1\n{text}");
    Policies::unsigned(file.as_bytes()).unwrap()
}

/// Findings of which these checks passed, with these claims.
fn good(passed: &[&'static str], claims: &[(&'static str, Claim)]) -> Findings {
    let mut findings = Findings::default();
    for name in passed {
        findings.passed(name, "");
    }
    findings.claims.extend(claims.iter().cloned());
    findings
}

fn tpm(kind: &str) -> Device {
    let claims = [("tpm", kind.into())];
    Device { kind: Kind::Tpm, findings: good(&["signature", "nonce"], &claims) }
}

fn gpu(confidential: bool) -> Device {
    let claims = [("confidential-mode", confidential.into()), ("developer-tools", false.into())];
    Device { kind: Kind::NvidiaGpu, findings: good(&["signature"], &claims) }
}

fn named(devices: &[(&str, Device)]) -> BTreeMap<String, Device> {
    devices.iter().map(|(name, device)| ((*name).to_owned(), device.clone())).collect()
}

fn ask(text: &str, devices: &[(&str, Device)]) -> Appraised {
    appraise(Some(&policies(text)), VERIFIER, NODE, &named(devices)).unwrap()
}

/// What policies say of one device.
fn one(text: &str, device: Device) -> Appraisal {
    ask(text, &[("it", device)]).submods()["it"].1.clone()
}

fn tier(text: &str, device: Device) -> Tier {
    one(text, device).tier()
}

#[test]
fn without_policies_nothing_is_said_of_anything() {
    let devices = named(&[("tpm", tpm("hardware")), ("gpu-0", gpu(true))]);
    let appraised = appraise(None, VERIFIER, NODE, &devices).unwrap();
    assert_eq!(appraised.tier(), Tier::None);
    assert_eq!(appraised.policy(), None);
    for (_, appraisal) in appraised.submods().values() {
        assert_eq!((appraisal.tier(), appraisal.reason()), (Tier::None, "there is no policy"));
    }
    // What contradicts itself does so without a policy, too.
    let mut broken = tpm("hardware");
    broken.findings.failed("signature", "not by this key");
    let appraised = appraise(None, VERIFIER, NODE, &named(&[("tpm", broken)])).unwrap();
    assert_eq!(appraised.tier(), Tier::Contraindicated);
}

#[test]
fn what_no_policy_permits_is_not_affirmed_and_what_none_speaks_of_is_not_known() {
    let text = r#"@id("on") permit (principal, action == Action::"affirm", resource is NvidiaGpu)
        when { resource has confidential_mode && resource.confidential_mode };"#;
    let affirmed = one(text, gpu(true));
    assert_eq!(affirmed.tier(), Tier::Affirming);
    assert_eq!(affirmed.policies(), &BTreeSet::from(["on".to_owned()]));
    assert_eq!(tier(text, gpu(false)), Tier::Contraindicated);
    let tpm = one(text, tpm("hardware"));
    assert_eq!((tpm.tier(), tpm.reason()), (Tier::None, "no policy permits anything of kind tpm"));
    // One device by its name, and no other of its kind.
    let text = r#"@id("0") permit (principal, action == Action::"affirm",
        resource == NvidiaGpu::"gpu-0");"#;
    let appraised = ask(text, &[("gpu-0", gpu(true)), ("gpu-1", gpu(true))]);
    assert_eq!(appraised.submods()["gpu-0"].1.tier(), Tier::Affirming);
    assert_eq!(appraised.submods()["gpu-1"].1.tier(), Tier::Contraindicated);
}

#[test]
fn a_forbidding_policy_overrides_those_that_permit() {
    let text = format!(
        "{CARELESS} @id(\"off\") forbid (principal, action, resource is NvidiaGpu) unless \
         {{ resource has confidential_mode && resource.confidential_mode }};"
    );
    assert_eq!(tier(&text, gpu(true)), Tier::Affirming);
    let forbidden = one(&text, gpu(false));
    assert_eq!((forbidden.tier(), forbidden.reason()), (Tier::Contraindicated, "forbidden by off"));
    assert_eq!(forbidden.policies(), &BTreeSet::from(["off".to_owned()]));
}

#[test]
fn what_is_permitted_with_a_warning_is_a_warning_and_affirming_is_tried_first() {
    let text = r#"
        @id("on") permit (principal, action == Action::"affirm", resource is NvidiaGpu)
        when { resource has confidential_mode && resource.confidential_mode };
        @id("any") permit (principal, action == Action::"warn", resource is NvidiaGpu);
        @id("node") permit (principal, action == Action::"admit", resource);"#;
    assert_eq!(tier(text, gpu(true)), Tier::Affirming);
    let warned = one(text, gpu(false));
    assert_eq!((warned.tier(), warned.policies().len()), (Tier::Warning, 1));
    let appraised = ask(text, &[("gpu-0", gpu(true)), ("gpu-1", gpu(false))]);
    assert_eq!(appraised.tier(), Tier::Warning);
}

/// The most permissive policy that can be written is not enough.
#[test]
fn no_policy_affirms_a_device_with_a_check_that_failed() {
    let texts = [
        CARELESS,
        r#"@id("all") @accepts("software-tpm") @unchecked("signature, nonce, registers")
           permit (principal, action == Action::"affirm", resource is Tpm);"#,
    ];
    for text in texts {
        let mut device = tpm("hardware");
        assert_eq!(tier(text, device.clone()), Tier::Affirming);
        device.findings.failed("registers", "7 is another");
        let failed = one(text, device);
        assert_eq!((failed.tier(), failed.reason()), (Tier::Contraindicated, "failed: registers"));
        assert!(failed.policies().is_empty(), "none was asked");
    }
}

#[test]
fn a_device_of_which_nothing_was_checked_is_not_affirmed() {
    let unchecked = Device { kind: Kind::Tpm, findings: good(&[], &[("tpm", "hardware".into())]) };
    assert_eq!(tier(CARELESS, unchecked), Tier::None);
}

#[test]
fn a_policy_that_never_looks_at_the_tpm_does_not_accept_a_software_one() {
    let looks_away = r#"@id("quote") permit (principal, action == Action::"affirm", resource is Tpm)
        when { resource.passed.contains("signature") };"#;
    let accepts = looks_away.replace("permit", "@accepts(\"software-tpm\") permit");
    assert_eq!(tier(looks_away, tpm("hardware")), Tier::Affirming);
    for kind in ["software", "", "Hardware", "virtual"] {
        for text in [CARELESS, looks_away] {
            let refused = one(text, tpm(kind));
            assert_eq!(refused.tier(), Tier::Contraindicated, "{kind}: {text}");
            assert!(refused.reason().contains("not known to be hardware"), "{}", refused.reason());
        }
        assert_eq!(tier(&accepts, tpm(kind)), Tier::Affirming);
    }
    // One of which it is not known is none that is known to be hardware.
    let silent = Device { kind: Kind::Tpm, findings: good(&["signature"], &[]) };
    assert_eq!(tier(looks_away, silent.clone()), Tier::Contraindicated);
    assert_eq!(tier(&accepts, silent), Tier::Affirming);
    // A log that rests on one is no better.
    let claims = [("tpm", "software".into())];
    let log = Device { kind: Kind::EventLog, findings: good(&["replay"], &claims) };
    assert_eq!(tier(CARELESS, log), Tier::Contraindicated);
}

/// Two policies are not weaker together than each alone.
#[test]
fn every_policy_that_permits_a_software_tpm_has_to_accept_it() {
    let accepts = r#"@id("yes") @accepts("software-tpm")
        permit (principal, action == Action::"affirm", resource is Tpm);"#;
    assert_eq!(tier(accepts, tpm("software")), Tier::Affirming);
    let both = format!("{accepts} {CARELESS}");
    let refused = one(&both, tpm("software"));
    assert_eq!(refused.tier(), Tier::Contraindicated);
    assert!(refused.reason().ends_with("which all does not accept"), "{}", refused.reason());
    let warns = r#"@id("w") permit (principal, action == Action::"warn", resource is Tpm);"#;
    assert_eq!(tier(warns, tpm("software")), Tier::Contraindicated);
}

#[test]
fn what_was_not_checked_is_passed_over_only_where_a_policy_names_it() {
    let mut device = gpu(true);
    device.findings.not_checked("golden values", "no reference values are here");
    let careless = one(CARELESS, device.clone());
    assert_eq!(careless.tier(), Tier::None);
    assert_eq!(careless.reason(), "not checked: golden values");
    let permits = |unchecked: &str| {
        format!(
            "@id(\"p\") @unchecked(\"{unchecked}\") \
             permit (principal, action == Action::\"affirm\", resource is NvidiaGpu);"
        )
    };
    assert_eq!(tier(&permits("golden values"), device.clone()), Tier::Affirming);
    assert_eq!(tier(&permits("nonce, golden values"), device.clone()), Tier::Affirming);
    assert_eq!(tier(&permits("golden value"), device.clone()), Tier::None);
    device.findings.not_checked("revocation", "its list is out of reach");
    assert_eq!(tier(&permits("golden values"), device), Tier::None);
}

/// A list that is out of reach is waited for; a GPU that has changed its mode ends at once.
#[test]
fn what_could_not_be_checked_is_told_from_what_contradicts_the_policy() {
    let text = r#"@id("on") permit (principal, action == Action::"affirm", resource is NvidiaGpu)
        when { resource.passed.containsAll(["signature", "revocation"]) &&
               resource has confidential_mode && resource.confidential_mode };
        @id("never") forbid (principal, action, resource is NvidiaGpu)
        when { resource.unchecked.contains("revocation") };"#;
    let with = |confidential, checked: bool| {
        let mut device = gpu(confidential);
        match checked {
            true => device.findings.passed("revocation", ""),
            false => device.findings.not_checked("revocation", "its list is out of reach"),
        }
        tier(text, device)
    };
    assert_eq!(with(true, true), Tier::Affirming);
    assert_eq!(with(true, false), Tier::None);
    assert_eq!(with(false, true), Tier::Contraindicated);
    assert_eq!(with(false, false), Tier::Contraindicated);
    // A check that nobody has made is not one that could not be made.
    assert_eq!(tier(text, gpu(true)), Tier::Contraindicated);
}

/// Cedar passes over what it cannot evaluate, and with it over what that forbids.
#[test]
fn a_policy_that_cannot_be_evaluated_permits_nothing_and_neither_do_the_others() {
    let text = format!(
        "{CARELESS} @id(\"sum\") forbid (principal, action, resource is Tpm) when \
         {{ resource has reset_count && resource.reset_count + 1 < 5 }};"
    );
    let with = |count: i64| {
        let mut device = tpm("hardware");
        device.findings.claim("reset-count", Claim::Number(count));
        one(&text, device)
    };
    assert_eq!(with(10).tier(), Tier::Affirming);
    let overflows = with(i64::MAX);
    assert_eq!(overflows.tier(), Tier::None);
    assert_eq!(overflows.reason(), "not to be evaluated: sum");
    // What another forbids is forbidden: a number that overflows does not buy time.
    let forbidden = format!("{text} @id(\"no\") forbid (principal, action, resource is Tpm);");
    let mut device = tpm("hardware");
    device.findings.claim("reset-count", Claim::Number(i64::MAX));
    let forbidden = one(&forbidden, device);
    assert_eq!((forbidden.tier(), forbidden.reason()), (Tier::Contraindicated, "forbidden by no"));
    // Of the node as well.
    let text = "@id(\"n\") permit (principal, action, resource is Node) when \
         { resource.tpm * 9223372036854775807 > 0 };";
    let node = ask(text, &[("a", tpm("hardware")), ("b", tpm("hardware"))]);
    assert_eq!(node.admission().reason(), "not to be evaluated: n");
}

#[test]
fn a_claim_that_policies_do_not_know_is_not_shown_and_one_of_another_type_is_a_fault() {
    let mut device = tpm("hardware");
    device.findings.claim("moon-phase", "full");
    device.findings.claim("passed", Claim::Texts(BTreeSet::from(["everything".to_owned()])));
    let text = r#"@id("p") permit (principal, action, resource is Tpm)
        unless { resource.passed.contains("everything") };"#;
    assert_eq!(tier(text, device.clone()), Tier::Affirming);
    device.findings.claim("reset-count", "many");
    let devices = named(&[("tpm", device)]);
    let fault = appraise(Some(&policies(text)), VERIFIER, NODE, &devices).unwrap_err();
    assert!(matches!(&fault, Fault::Internal(why) if why.contains("reset-count")), "{fault}");
}

#[test]
fn more_files_than_anybody_looks_at_are_not_known_to_be_good() {
    let with = |count: usize| {
        let files = (0..count).map(|number| number.to_string()).collect::<BTreeSet<String>>();
        let claims = [("ima-unknown-files", files.into())];
        Device { kind: Kind::Ima, findings: good(&["replay"], &claims) }
    };
    assert_eq!(tier(CARELESS, with(MAX_TEXTS)), Tier::Affirming);
    assert_eq!(tier(CARELESS, with(MAX_TEXTS + 1)), Tier::Contraindicated);
}

#[test]
fn a_node_that_does_not_show_all_that_it_has_to_is_not_affirmed() {
    let text = |admit: &str| {
        format!(
            "@id(\"d\") permit (principal, action == Action::\"affirm\", resource); \
             @id(\"n\") permit (principal, action == Action::\"admit\", resource) when {{ {admit} }};"
        )
    };
    let (tpm, gpu) = (("tpm", tpm("hardware")), ("gpu-0", gpu(true)));
    let both = [tpm.clone(), gpu.clone()];
    for (admit, alone, together) in [
        ("resource.tpm == 1", Tier::Affirming, Tier::Affirming),
        ("resource.tpm == 1 && resource.nvidia_gpu >= 1", Tier::None, Tier::Affirming),
        ("resource.submods.containsAll([\"tpm\", \"gpu-0\"])", Tier::None, Tier::Affirming),
        ("resource.affirming.contains(\"gpu-0\")", Tier::None, Tier::Affirming),
        ("resource.warning.contains(\"gpu-0\")", Tier::None, Tier::None),
        ("resource.submods == [\"tpm\"]", Tier::Affirming, Tier::None),
        ("resource.nvidia_switch == 4", Tier::None, Tier::None),
    ] {
        assert_eq!(ask(&text(admit), std::slice::from_ref(&tpm)).tier(), alone, "{admit}");
        assert_eq!(ask(&text(admit), &both).tier(), together, "{admit}");
    }
    // Whoever admits no node affirms none.
    let devices_only = r#"@id("d") permit (principal, action == Action::"affirm", resource);"#;
    let appraised = ask(devices_only, &both);
    assert_eq!(appraised.tier(), Tier::None);
    assert!(appraised.submods().values().all(|(_, one)| one.tier() == Tier::Affirming));
    assert_eq!(ask(CARELESS, &[]).submods().len(), 0);
}

#[test]
fn submodules_are_bounded_and_have_plain_names() {
    let policies = policies(CARELESS);
    let of = |names: &[String]| {
        let devices = names.iter().map(|name| (name.clone(), gpu(true))).collect();
        appraise(Some(&policies), VERIFIER, NODE, &devices)
    };
    let several = |count| (0..count).map(|n| format!("gpu-{n}")).collect::<Vec<_>>();
    assert!(of(&several(MAX_SUBMODS)).is_ok());
    assert_eq!(of(&several(MAX_SUBMODS + 1)).unwrap_err().code(), 16);
    for name in ["", "GPU", "a b", "a\n", &"x".repeat(65)] {
        assert_eq!(of(&[name.to_owned()]).unwrap_err().code(), 16, "{name:?}");
    }
}

#[test]
fn a_reason_is_short_whatever_the_checks_are_called() {
    let mut device = gpu(true);
    let names = ["ä".repeat(150), "b".repeat(150)];
    for name in names {
        device.findings.failed(name.leak(), "");
    }
    let reason = one(CARELESS, device).reason().to_owned();
    assert!((MAX_REASON_BYTES - 1..=MAX_REASON_BYTES).contains(&reason.len()), "{reason}");
}

const TEXTS: [&str; 4] = [
    CARELESS,
    r#"@id("d") permit (principal, action == Action::"affirm", resource is Tpm)
       when { resource has reset_count && resource.reset_count + 1 > 3 };
       @id("n") permit (principal, action == Action::"admit", resource);"#,
    r#"@id("d") @accepts("software-tpm") @unchecked("signature, nonce")
       permit (principal, action == Action::"warn", resource is Tpm);
       @id("e") permit (principal, action == Action::"affirm", resource is NvidiaGpu);
       @id("n") permit (principal, action == Action::"admit", resource);"#,
    r#"@id("f") forbid (principal, action, resource is Tpm)
       when { resource.unchecked.contains("nonce") };
       @id("all") permit (principal, action, resource);"#,
];

fn any_findings() -> impl Strategy<Value = Findings> {
    let name = prop::sample::select(vec!["signature", "nonce", "registers"]);
    let outcome = prop::sample::select(vec![Outcome::Passed, Outcome::NotChecked, Outcome::Failed]);
    let checks =
        prop::collection::vec((name, prop_oneof![4 => Just(Outcome::Passed), 1 => outcome]), 0..4);
    let tpm = prop::option::of("hardware|software");
    let resets = prop::option::of(any::<i64>());
    (checks, tpm, resets).prop_map(|(checks, tpm, resets)| {
        let mut findings = Findings::default();
        for (name, outcome) in checks {
            match outcome {
                Outcome::Passed => findings.passed(name, ""),
                Outcome::NotChecked => findings.not_checked(name, ""),
                Outcome::Failed => findings.failed(name, ""),
            }
        }
        findings.claims.extend(tpm.map(|tpm| ("tpm", Claim::Text(tpm))));
        findings.claims.extend(resets.map(|resets| ("reset-count", Claim::Number(resets))));
        findings
    })
}

proptest! {
    /// Whatever evidence says, and whatever a policy permits.
    #[test]
    fn nothing_is_affirmed_against_the_rules_that_no_policy_can_change(
        text in prop::sample::select(TEXTS.to_vec()),
        found in prop::collection::vec((any::<bool>(), any_findings()), 0..4),
    ) {
        let device = |(number, (is_tpm, findings)): (usize, (bool, Findings))| {
            // A GPU makes no claims of a TPM's.
            let kind = if is_tpm { Kind::Tpm } else { Kind::NvidiaGpu };
            (format!("d-{number}"), Device { kind, findings })
        };
        let devices: BTreeMap<String, Device> = found.into_iter().enumerate().map(device).collect();
        let policies = policies(text);
        let appraised = appraise(Some(&policies), VERIFIER, NODE, &devices).unwrap();
        let good = |tier| matches!(tier, Tier::Affirming | Tier::Warning);
        for (name, (kind, appraisal)) in appraised.submods() {
            prop_assert!(appraised.tier() >= appraisal.tier());
            let findings = &devices[name].findings;
            if findings.worst() == Outcome::Failed {
                prop_assert_eq!(appraisal.tier(), Tier::Contraindicated);
            }
            if !good(appraisal.tier()) {
                continue;
            }
            prop_assert!(!findings.checks.is_empty());
            prop_assert!(!appraisal.policies().is_empty());
            let names = appraisal.policies().iter().map(PolicyId::new);
            for terms in names.map(|id| policies.terms(&id).clone()) {
                let unchecked = checks(findings, Outcome::NotChecked);
                prop_assert!(unchecked.iter().all(|name| terms.unchecked.contains(*name)));
                let hardware = Claim::Text("hardware".to_owned());
                let claim = findings.claims.get("tpm");
                let is_other = claim.map_or(*kind == Kind::Tpm, |claim| *claim != hardware);
                prop_assert!(terms.software_tpm || !is_other);
            }
        }
        if devices.is_empty() {
            prop_assert!(appraised.submods().is_empty());
        }
    }
}
