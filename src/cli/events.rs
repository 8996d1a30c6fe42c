//! The stream of events of a running appliance.

use std::ops::ControlFlow;

use reqwest::{Method, header};

use super::client::{Client, ClientError};
use super::said::Said;
use crate::wire::EventRecord;

/// Reads the events after number `after`, or those from now on, until `take` breaks it off or the stream ends. `take` is given
/// nothing when nothing has happened for a while.
///
/// # Errors
/// The stream cannot be had, or not even a sign of life comes any more.
pub(super) async fn read_events(
    client: &Client,
    after: Option<u64>,
    mut take: impl FnMut(Option<&Said<EventRecord>>) -> ControlFlow<()>,
) -> Result<(), ClientError> {
    let path = after.map_or_else(|| "/api/v1/events".to_owned(), |after| format!("/api/v1/events?after={after}"));
    let request = client.request(Method::GET, &path).header(header::ACCEPT, "application/x-ndjson");
    let mut stream = client.send(request).await?;
    let mut pending = Vec::new();
    loop {
        match client.next_chunk(&mut stream).await {
            Ok(Some(chunk)) => pending.extend_from_slice(&chunk),
            Ok(None) | Err(ClientError::Broken { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            let event = serde_json::from_slice::<Said<EventRecord>>(&line);
            if (line == b"\n" || event.is_ok()) && take(event.as_ref().ok()).is_break() {
                return Ok(());
            }
        }
    }
}
