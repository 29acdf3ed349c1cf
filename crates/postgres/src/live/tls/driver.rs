//! TLS for the SQL client.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;

use super::error::TlsError;
use super::settings::ClientTls;

/// Begins TLS on sockets of the SQL client, with what is prepared for one host.
#[derive(Clone)]
pub(crate) struct DriverTls(pub(crate) ClientTls);

/// A socket of the SQL client within TLS.
pub(crate) struct Stream<S> {
    inner: tokio_rustls::client::TlsStream<S>,
    tls: ClientTls,
}

impl<S> MakeTlsConnect<S> for DriverTls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Self;
    type Error = TlsError;

    fn make_tls_connect(&mut self, _domain: &str) -> Result<Self, TlsError> {
        Ok(self.clone())
    }
}

impl<S> TlsConnect<S> for DriverTls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = TlsError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream<S>, TlsError>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        let tls = self.0;
        Box::pin(async move {
            let connector = TlsConnector::from(tls.config.clone());
            match connector.connect(tls.name.clone(), stream).await {
                Ok(inner) => {
                    tls.check_alpn(inner.get_ref().1.alpn_protocol())?;
                    Ok(Stream { inner, tls })
                }
                Err(error) => Err(tls.sort_io(&error)),
            }
        })
    }
}

impl<S> TlsStream for Stream<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn channel_binding(&self) -> ChannelBinding {
        match self.tls.bound_to(self.inner.get_ref().1.peer_certificates()) {
            Some(hash) => ChannelBinding::tls_server_end_point(hash),
            None => ChannelBinding::none(),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // From TLS 1.3 on a server says only here what it thinks of our certificate.
        let read = Pin::new(&mut self.inner).poll_read(context, into);
        read.map_err(|error| self.tls.explain(error))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
