//! What is done about failures: what it means, and what may not be written.

use super::*;

#[test]
fn who_says_nothing_of_failures_is_guarded_against_them() {
    let settings = settings_of(MINIMAL);
    assert_eq!(settings.retry, Default::default());
    assert_eq!(settings.retry.on.len(), 14);
    let upstream = &settings.upstreams[0];
    assert_eq!(upstream.outlier, Some(Default::default()));
    assert_eq!(upstream.breaker, Some(Default::default()));
    assert_eq!(upstream.affinity, Some(Default::default()));
    assert_eq!(upstream.credit, Some(Default::default()));
    let clocks = &upstream.timeouts;
    assert_eq!(
        [
            clocks.first_byte,
            clocks.queued,
            clocks.first_content,
            clocks.gap
        ]
        .map(|time| time.as_secs()),
        [60, 600, 600, 120]
    );
    let account = &upstream.accounts[0];
    assert_eq!((account.priority, account.weight), (0, 1));
    let model = &settings.models["flash"];
    assert_eq!(model.deadlines, Default::default());
    assert_eq!((&model.degraded, model.resume), (&None, 0));
    assert_eq!(model.variants[0].on, None);
    assert_eq!(settings.tenants[0].deadlines, Default::default());
}
