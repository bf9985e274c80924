use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::config::{Layer, load};
use crate::upstream::pool::Pool;

const URL: &str = "http://127.0.0.1:9";

fn settings() -> Settings {
    let text = "\
server: {listeners: [{address: '127.0.0.1:8080'}]}
tenants: [{id: search, models: ['*']}, {id: shop, models: ['*']}]
upstreams:
  - {id: one, dialect: openai, endpoints: [{url: 'http://127.0.0.1:9'}], accounts: [{id: main}]}
models: {flash: {variants: [{upstream: one, model: flash}]}}
";
    let layer = Layer::Text {
        name: "test.yaml".to_owned(),
        bytes: Arc::from(text.as_bytes()),
    };
    load(&[layer]).unwrap().settings
}

fn note(reason: &str) -> Note {
    Note {
        since: Timestamp::UNIX_EPOCH,
        author: "ann".to_owned(),
        from: "127.0.0.1:1".to_owned(),
        reason: reason.to_owned(),
    }
}

fn switches() -> Switches {
    Switches::new(Arc::new(Registry::default()))
}

fn account() -> Target {
    Target::from_parts("account", "one", "main").unwrap()
}

fn endpoint() -> Target {
    Target::from_parts("endpoint", "one", URL).unwrap()
}

#[test]
fn only_what_is_off_is_refused_and_only_until_it_is_on_again() {
    let switches = switches();
    let tenant = Target::Tenant("search".into());
    let asked = || {
        [
            switches.tenant_is_off(&TenantId::new("search")),
            switches.tenant_is_off(&TenantId::new("shop")),
            switches.model_is_off("search"),
            switches.upstream_is_off(&UpstreamId::new("search")),
        ]
    };
    assert_eq!(asked(), [false; 4]);
    switches.set(tenant.clone(), note("a loop"));
    assert_eq!(asked(), [true, false, false, false]);
    switches.set(Target::Model("search".into()), note(""));
    switches.set(Target::Upstream("search".into()), note(""));
    assert_eq!(asked(), [true, false, true, true]);
    assert!(switches.clear(&tenant).is_some());
    assert_eq!(asked(), [false, false, true, true]);
    assert!(switches.clear(&tenant).is_none());
}

#[test]
fn switching_off_twice_leaves_one_switch_with_the_later_note() {
    let switches = switches();
    let target = Target::Model("flash".into());
    switches.set(target.clone(), note("first"));
    switches.set(target.clone(), note("second"));
    assert_eq!(switches.list(), [(target, note("second"))]);
}

#[test]
fn a_drain_reaches_the_running_state_also_of_what_comes_later() {
    let registry = Arc::new(Registry::default());
    let switches = Switches::new(registry.clone());
    switches.set(account(), note("rotate"));
    switches.set(endpoint(), note("rotate"));
    let settings = settings();
    let pool = Pool::new(settings.upstreams[0].clone(), &registry, Instant::now()).unwrap();
    let drained = || {
        (
            pool.accounts[0].state.is_drained(),
            pool.endpoints[0].state.is_drained(),
        )
    };
    assert_eq!(drained(), (false, false));
    switches.follow();
    assert_eq!(drained(), (true, true));
    switches.clear(&account());
    assert_eq!(drained(), (false, true));
    switches.set(account(), note("again"));
    switches.clear(&endpoint());
    assert_eq!(drained(), (true, false));
    // None of it is asked for by requests.
    assert!(!switches.any.load(Ordering::Relaxed));
}

#[test]
fn what_was_kept_holds_but_not_against_what_was_said_since() {
    let switches = switches();
    let (on, off) = (Target::Model("on".into()), Target::Model("off".into()));
    let old = Target::Tenant("old".into());
    switches.set(on.clone(), note(""));
    switches.clear(&on);
    switches.set(off.clone(), note("new"));
    switches.restore(vec![
        (on, note("before")),
        (off.clone(), note("before")),
        (old.clone(), note("before")),
    ]);
    let expected = [(old, note("before")), (off, note("new"))];
    assert_eq!(switches.list(), expected);
    assert!(switches.tenant_is_off(&TenantId::new("old")));
}

#[test]
fn what_changed_is_to_be_kept_until_it_is() {
    use futures_util::FutureExt;
    let switches = switches();
    assert!(switches.unkept().is_none());
    let version = switches.set(account(), note(""));
    assert!(switches.kept(version).now_or_never().is_none());
    let (written, entries) = switches.unkept().unwrap();
    assert_eq!((written, entries.len()), (version, 1));
    let later = switches.clear(&account()).unwrap();
    switches.note_kept(written);
    assert!(switches.kept(version).now_or_never().is_some());
    assert!(switches.kept(later).now_or_never().is_none());
    assert_eq!(switches.unkept(), Some((later, Vec::new())));
    switches.note_kept(later);
    assert!(switches.unkept().is_none());
    switches.keep_again();
    assert_eq!(switches.unkept(), Some((later, Vec::new())));
}

#[test]
fn a_name_is_known_by_the_configuration_alone() {
    let settings = settings();
    let known = |kind: &str, part_of: &str, name: &str| {
        let target = Target::from_parts(kind, part_of, name).unwrap();
        target.is_known(&settings)
    };
    assert!(known("tenant", "", "search"));
    assert!(known("model", "", "flash"));
    assert!(known("upstream", "", "one"));
    assert!(known("account", "one", "main"));
    assert!(known("endpoint", "one", URL));
    assert!(!known("tenant", "", "flash"));
    assert!(!known("account", "two", "main"));
    assert!(!known("endpoint", "one", "http://127.0.0.1:10"));
    assert!(Target::from_parts("flag", "", "search").is_none());
}

proptest! {
    #[test]
    fn requests_see_what_the_list_says(
        steps in prop::collection::vec((0..3usize, 0..4usize, any::<bool>()), 0..40),
    ) {
        let switches = switches();
        let target = |kind: usize, name: usize| {
            Target::from_parts(["tenant", "model", "upstream"][kind], "", &name.to_string()).unwrap()
        };
        for (kind, name, off) in steps {
            if off {
                switches.set(target(kind, name), note(""));
            } else {
                switches.clear(&target(kind, name));
            }
            for kind in 0..3 {
                for name in 0..4 {
                    let id = name.to_string();
                    let seen = match kind {
                        0 => switches.tenant_is_off(&TenantId::new(&id)),
                        1 => switches.model_is_off(&id),
                        _ => switches.upstream_is_off(&UpstreamId::new(&id)),
                    };
                    prop_assert_eq!(seen, switches.get(&target(kind, name)).is_some());
                }
            }
        }
    }
}
