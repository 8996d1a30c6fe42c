//! `GET /metrics`: the figures of this appliance in Prometheus' text format.

use std::fmt::Write;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use super::{Shared, status};
use crate::component::Health;
use crate::wire::Condition;

pub(super) async fn metrics(State(app): State<Shared>) -> impl IntoResponse {
    let health = match status::of(&app).await.health.map(|health| health.state) {
        Some(Condition::Well) => 0.0,
        Some(Condition::Degraded | Condition::Other(_)) => 1.0,
        Some(Condition::Down) | None => 2.0,
    };
    let mut text = String::new();
    let mut family = |name: &str, help: &str, rows: Vec<(String, f64)>| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let running = app.bus.state() == refit_bus::State::Running;
    family("refit_running", "1 while the appliance serves.", vec![(String::new(), f64::from(u8::from(running)))]);
    family(
        "refit_release_info",
        "The running release.",
        vec![(format!("{{appliance=\"{}\",version=\"{}\"}}", app.config.name, app.config.version), 1.0)],
    );
    family(
        "refit_health",
        "0 while the appliance is well, 1 while something needs somebody, 2 while it does not serve.",
        vec![(String::new(), health)],
    );
    let generation = f64::from(app.context.registry.generation());
    family("refit_runtime_generation", "Counts the process images of the runtime.", vec![(String::new(), generation)]);
    let views: Vec<_> = app.components.values().map(|component| component.view().borrow().clone()).collect();
    let label = |name: &str| format!("{{component=\"{name}\"}}");
    let rows = |value: &dyn Fn(&crate::component::View) -> f64| -> Vec<(String, f64)> {
        views.iter().map(|view| (label(&view.name), value(view))).collect()
    };
    family(
        "refit_component_running",
        "1 while the component runs, has done its work, or waits for its next run.",
        rows(&|view| f64::from(u8::from(view.state.is_up()))),
    );
    family(
        "refit_component_healthy",
        "0 while the component is unhealthy.",
        rows(&|view| f64::from(u8::from(!matches!(view.health, Health::Unhealthy(_))))),
    );
    family(
        "refit_component_restarts",
        "How often the component was started again after it had ended by itself.",
        rows(&|view| f64::from(view.restarts)),
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
