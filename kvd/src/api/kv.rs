//! What applications call.

use super::respond;
use crate::cluster::{Node, get, put, scan};
use crate::door::access::{self, Right};
use proto::v1::kv_server::Kv;
use proto::v1::{
    DeleteRequest, GetReply, GetRequest, PutRequest, ScanReply, ScanRequest, WriteReply,
};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// Serves `kvd.v1.Kv`.
pub struct KvService {
    /// The node it speaks for.
    pub node: Arc<Node>,
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        access::check(&self.node, &request, Right::Read, &request.get_ref().keyspace)?;
        respond(get::get(&self.node, request.into_inner()).await)
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<WriteReply>, Status> {
        access::check(&self.node, &request, Right::Write, &request.get_ref().keyspace)?;
        respond(put::put(&self.node, request.into_inner()).await)
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<WriteReply>, Status> {
        access::check(&self.node, &request, Right::Write, &request.get_ref().keyspace)?;
        respond(put::delete(&self.node, request.into_inner()).await)
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanReply>, Status> {
        access::check(&self.node, &request, Right::Read, &request.get_ref().keyspace)?;
        respond(scan::scan(&self.node, request.into_inner()).await)
    }
}
