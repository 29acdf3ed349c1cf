//! From a connected socket to a session that takes commands: startup and proofs of who we are.
//!
//! Source: PostgreSQL documentation, "Start-up" and "SASL Authentication".

use std::time::{Duration, Instant};

use lifeboat_units::Secret;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};

use super::channel::Channel;
use super::error::WireError;
use super::frame::{append, append_untyped, tag};
use super::message::Fields;
use crate::live::conninfo::Binding;
use crate::live::tls::TlsError;

/// Version 3.0 of the protocol, which every server from 7.4 on speaks.
const PROTOCOL: i32 = 3 << 16;

/// Set for the session: nothing of ours may be cut off by time limits that are meant for others.
const OPTIONS: &str = "-c statement_timeout=0 -c idle_session_timeout=0";

/// Who logs in, and how.
pub(super) struct Login<'a> {
    pub user: &'a str,
    pub password: Option<&'a Secret>,
    pub application_name: &'a str,
    pub options: Option<&'a str>,
    pub binding: Binding,
    pub deadline: Instant,
}

impl Login<'_> {
    /// Starts the session and waits until the server takes commands.
    pub(super) fn run(&self, channel: &mut Channel) -> Result<(), WireError> {
        channel.send(&self.startup())?;
        self.authenticate(channel)?;
        loop {
            match channel.receive(self.left())? {
                tag::READY => return Ok(()),
                // What cancels a statement from another connection; a shutdown does that here.
                tag::BACKEND_KEY | tag::NEGOTIATE => {}
                tag::ERROR => return Err(channel.report()),
                kind => return Err(WireError::Unexpected { kind: kind.into() }),
            }
        }
    }

    fn left(&self) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        Some(left.max(Duration::from_millis(1)))
    }

    fn startup(&self) -> Vec<u8> {
        let options = match self.options {
            Some(options) => format!("{options} {OPTIONS}"),
            None => OPTIONS.to_owned(),
        };
        let parameters = [
            ("user", self.user),
            ("replication", "true"),
            ("application_name", self.application_name),
            ("client_encoding", "UTF8"),
            ("options", &options),
        ];
        let mut message = Vec::new();
        append_untyped(&mut message, |body| {
            body.extend_from_slice(&PROTOCOL.to_be_bytes());
            for (name, value) in parameters {
                text(body, name.as_bytes());
                text(body, value.as_bytes());
            }
            body.push(0);
        });
        message
    }

    fn authenticate(&self, channel: &mut Channel) -> Result<(), WireError> {
        loop {
            match channel.receive(self.left())? {
                tag::AUTHENTICATION => {}
                tag::ERROR => return Err(channel.report()),
                tag::NEGOTIATE => continue,
                kind => return Err(WireError::Unexpected { kind: kind.into() }),
            }
            let mut fields = Fields(channel.body());
            let asked = fields.i32()?;
            if self.binding == Binding::Require && asked != 10 {
                let why =
                    "the server offers none: it is without TLS, or asks for no password as SCRAM";
                return Err(TlsError::NoBinding { why }.into());
            }
            match asked {
                0 => return Ok(()),
                3 => self.send_password(channel, self.password()?.as_bytes())?,
                5 => {
                    let salt = fields.array()?;
                    let hash = md5_hash(self.user.as_bytes(), self.password()?.as_bytes(), salt);
                    self.send_password(channel, hash.as_bytes())?;
                }
                10 => return self.scram(channel),
                other => return Err(WireError::Method { method: method(other) }),
            }
        }
    }

    fn password(&self) -> Result<&str, WireError> {
        self.password.map(Secret::expose).ok_or(WireError::NoPassword)
    }

    fn send_password(&self, channel: &mut Channel, password: &[u8]) -> Result<(), WireError> {
        let mut message = Vec::new();
        append(&mut message, tag::PASSWORD, |body| text(body, password));
        channel.send(&message)
    }

    /// Proves that we know the password, and has the server prove that it does.
    fn scram(&self, channel: &mut Channel) -> Result<(), WireError> {
        let mut offered = Fields(channel.body());
        offered.i32()?;
        let mut mechanisms = Vec::new();
        loop {
            let name = offered.text()?;
            if name.is_empty() {
                break;
            }
            mechanisms.push(name);
        }
        let (mechanism, binding) = self.mechanism(&mechanisms, channel.socket().bound_to())?;
        let mut proof = ScramSha256::new(self.password()?.as_bytes(), binding);
        let mut message = Vec::new();
        append(&mut message, tag::PASSWORD, |body| {
            text(body, mechanism.as_bytes());
            body.extend_from_slice(&(proof.message().len() as i32).to_be_bytes());
            body.extend_from_slice(proof.message());
        });
        channel.send(&message)?;
        let failed = |source| WireError::Scram { source };
        proof.update(self.proof_of_server(channel, 11)?).map_err(failed)?;
        message.clear();
        append(&mut message, tag::PASSWORD, |body| body.extend_from_slice(proof.message()));
        channel.send(&message)?;
        proof.finish(self.proof_of_server(channel, 12)?).map_err(failed)?;
        match self.proof_of_server(channel, 0)? {
            [] => Ok(()),
            _ => Err(WireError::Unproven),
        }
    }

    /// Chooses how to prove it: bound to the TLS connection where both sides can.
    fn mechanism(
        &self,
        offered: &[String],
        bound_to: Option<Vec<u8>>,
    ) -> Result<(&'static str, ChannelBinding), WireError> {
        let offers = |name: &str| offered.iter().any(|offered| offered == name);
        let why = match (offers(SCRAM_SHA_256_PLUS), bound_to) {
            (true, Some(hash)) => {
                return Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash)));
            }
            // Says that we could have: a server that was made to look as if it could not notices.
            (false, Some(_)) if self.binding == Binding::Prefer && offers(SCRAM_SHA_256) => {
                return Ok((SCRAM_SHA_256, ChannelBinding::unrequested()));
            }
            (false, _) => {
                "the server offers none: it is without TLS, or asks for no password as SCRAM"
            }
            (true, None) => "none is defined for the kind of certificate that the server has",
        };
        if self.binding == Binding::Require {
            return Err(TlsError::NoBinding { why }.into());
        }
        if !offers(SCRAM_SHA_256) {
            return Err(WireError::Method { method: offered.join(", ") });
        }
        Ok((SCRAM_SHA_256, ChannelBinding::unsupported()))
    }

    /// The server's part of the exchange; `step` is its number in the protocol.
    fn proof_of_server<'a>(
        &self,
        channel: &'a mut Channel,
        step: i32,
    ) -> Result<&'a [u8], WireError> {
        match channel.receive(self.left())? {
            tag::AUTHENTICATION => {}
            tag::ERROR => return Err(channel.report()),
            kind => return Err(WireError::Unexpected { kind: kind.into() }),
        }
        let mut fields = Fields(channel.body());
        if fields.i32()? == step { Ok(fields.0) } else { Err(WireError::Unproven) }
    }
}

/// Appends a string and the zero byte that ends it. A zero byte inside cannot be sent.
fn text(body: &mut Vec<u8>, text: &[u8]) {
    body.extend(text.iter().filter(|byte| **byte != 0));
    body.push(0);
}

/// Source: `AUTH_REQ_…` in `src/include/libpq/protocol.h`.
fn method(number: i32) -> String {
    match number {
        2 => "Kerberos V5".to_owned(),
        6 => "SCM credentials".to_owned(),
        7 | 8 => "GSSAPI".to_owned(),
        9 => "SSPI".to_owned(),
        other => format!("an unknown way to log in ({other})"),
    }
}
