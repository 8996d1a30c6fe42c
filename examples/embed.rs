//! The bus in a daemon of somebody else's: two components, a certificate that is reloaded in two phases, and an orderly end.
//! Run it with `cargo run --example embed`; ask it with signals: HUP reloads, INT and TERM end it.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use refit::bus::{Act, CancellationToken, Level, OnEnd, Options, Order, Phase, Service, StopReason};
use refit::{Bus, Component, Failure, Origin, Request};

/// Holds the settings that are in force, and the ones that are prepared.
#[derive(Default)]
struct Certificate(Mutex<(u64, Option<u64>)>);

impl Component for Certificate {
    fn name(&self) -> &str {
        "certificate"
    }
    fn start(self: Arc<Self>, _cancelled: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }
    fn stop(self: Arc<Self>, _reason: StopReason, _hurry: CancellationToken) -> Act {
        Box::pin(async { Ok(()) })
    }
    fn reload(self: Arc<Self>, phase: Phase, generation: u64) -> Act {
        Box::pin(async move {
            let mut certificate = self.0.lock().map_err(|_| Failure::new("a writer panicked"))?;
            let (in_force, prepared) = &mut *certificate;
            match phase {
                Phase::Prepare => *prepared = Some(generation), // read and check the new files here, refuse with a reason
                Phase::Commit => *in_force = prepared.take().unwrap_or_default(),
                Phase::Abort => *prepared = None,
                Phase::Revert => {} // only who says that it can revert is asked to
            }
            eprintln!("{} of {generation}: certificate {in_force} is in force", phase.name());
            Ok(())
        })
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let (bus, engine) = Bus::new(Options::default());
    let signals = bus.signals()?;
    let worker = Service::new(&bus, "worker", OnEnd::Exit, |stop| async move {
        stop.cancelled().await; // serve until told to stop
        Ok(())
    });
    bus.attach(Arc::new(Certificate::default()))?;
    bus.attach(Arc::new(worker.order(Order { needs: vec!["certificate".to_owned()], ..Order::default() })))?;
    let started = bus.request(Request::Start, Origin("main".to_owned()));
    let handle = bus.clone();
    let main = async move {
        handle.log(Level::Warning, format!("start: {:?}", started.outcome().await));
        signals.await;
    };
    Ok(engine.run_with(bus, main).await.exit_code())
}
