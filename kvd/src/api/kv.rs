//! What applications call.

use super::{respond, respond_to_read};
use crate::cluster::coordinator::{self, Admitted};
use crate::cluster::errors::Failure;
use crate::cluster::{Node, errors, get, put, scan};
use crate::door::access::{self, Right};
use proto::v1::kv_server::Kv;
use proto::v1::{
    DeleteRequest, GetReply, GetRequest, PutRequest, ScanReply, ScanRequest, WriteReply,
};
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tonic::{Request, Response, Status};

/// Serves `kvd.v1.Kv`.
pub struct KvService {
    /// The node it speaks for.
    pub node: Arc<Node>,
}

/// What a request holds while it is worked on.
struct Place<'a> {
    admitted: Admitted<'a>,
    _turn: Option<OwnedSemaphorePermit>,
}

impl KvService {
    /// Refuses what its sender may not do, and what is too much. The rest waits a little, if it must, for
    /// what came before it by the same connection.
    async fn admit<T>(
        &self,
        request: &Request<T>,
        right: Right,
        keyspace: &str,
    ) -> Result<Place<'_>, Status> {
        access::check(&self.node, request, right, keyspace)?;
        let refused = |failure: Failure| {
            coordinator::count_failure(&self.node, &failure);
            let is_read = right == Right::Read;
            let failure = if is_read { errors::of_a_read(failure) } else { failure };
            proto::error::status(&failure)
        };
        let admitted = coordinator::admit(&self.node).map_err(refused)?;
        let turn = match access::session(request) {
            Some(session) => session.turn().await,
            None => None,
        };
        Ok(Place { admitted, _turn: turn })
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let place = self.admit(&request, Right::Read, &request.get_ref().keyspace).await?;
        respond_to_read(get::get(&self.node, request.into_inner(), place.admitted.since).await)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<WriteReply>, Status> {
        let place = self.admit(&request, Right::Write, &request.get_ref().keyspace).await?;
        respond(put::put(&self.node, request.into_inner(), place.admitted.since).await)
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<WriteReply>, Status> {
        let place = self.admit(&request, Right::Write, &request.get_ref().keyspace).await?;
        respond(put::delete(&self.node, request.into_inner(), place.admitted.since).await)
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanReply>, Status> {
        let place = self.admit(&request, Right::Read, &request.get_ref().keyspace).await?;
        respond_to_read(scan::scan(&self.node, request.into_inner(), place.admitted.since).await)
    }
}
