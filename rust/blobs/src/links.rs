//! Connections to providers, kept as long as they last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use iroh::endpoint::Connection;
use iroh_blobs::ALPN;
use jobs_net::Dialler;

/// One for each provider; a lock for each, so that one that does not answer holds up nobody else.
#[derive(Default)]
pub(crate) struct Links {
    dialler: Mutex<Option<Dialler>>,
    links: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Connection>>>>>,
}

impl Links {
    pub fn set_dialler(&self, dialler: Option<Dialler>) {
        *self.dialler.lock().unwrap_or_else(PoisonError::into_inner) = dialler;
    }

    /// A connection to this provider, and whether it was just made; or why there is none.
    pub async fn to(&self, peer: &str) -> Result<(Connection, bool), String> {
        let dialler = self.dialler.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let dialler = dialler.ok_or("this node is not on a network")?;
        let link = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(links.entry(peer.to_owned()).or_default())
        };
        let mut link = link.lock().await;
        if let Some(open) = link.as_ref().filter(|open| open.close_reason().is_none()) {
            return Ok((open.clone(), false));
        }
        let made = dialler.connect(peer, ALPN).await.map_err(|error| error.to_string())?;
        *link = Some(made.clone());
        Ok((made, true))
    }
}
