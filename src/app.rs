//! The composition root: what is started in which order, and how it all stops.
//!
//! Start: store, backbone, engine, registry, learner, interface; readiness only then. Stop, on a signal: readiness
//! fails and the worker puts its job back into the queue, the listener closes, requests drain within a bound, the engine
//! ends, the store closes.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use candle_core::{Device, Tensor};
use futures::future::join;
use jiff::Timestamp;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::clip::Backbone;
use crate::config::{BackboneArgs, DeviceChoice, ServeConfig};
use crate::domain::ModelConfig;
use crate::engine::{Engine, EngineConfig};
use crate::http::{self, Api, ConnectionLimits};
use crate::learner::Learner;
use crate::metrics;
use crate::registry::Registry;
use crate::store::{ActivationFeed, Announcement, Owner, Store, StoreError};

/// How often the registry compares what serves with what the store says.
const REFRESH: Duration = Duration::from_secs(5);

/// How long requests may go on once the device is lost.
const PARTING: Duration = Duration::from_secs(1);

/// A server that is bound and ready to run.
pub struct App {
    listener: TcpListener,
    connections: ConnectionLimits,
    addr: SocketAddr,
    api: Api,
    store: Store,
    /// From the signal to stop until the listener closes.
    linger: Duration,
    /// From then on.
    drain: Duration,
    /// Held for as long as the server lives; a killed one's is released by the system.
    lock: File,
}

impl App {
    /// Opens the store, loads the backbone, restores what serves and binds the address.
    ///
    /// # Errors
    /// Whatever keeps the server from starting, in words for an operator.
    pub async fn build(config: &ServeConfig, metrics: PrometheusHandle) -> anyhow::Result<Self> {
        refuse_open_address(config)?;
        let spool = config.data_dir.join("spool");
        std::fs::create_dir_all(&spool).with_context(|| format!("cannot create {}", spool.display()))?;
        let lock = lock_directory(&config.data_dir)?;
        let owner = Owner::persisted(&config.data_dir.join("server-id"))
            .with_context(|| format!("cannot keep the server's id in {}", config.data_dir.display()))?;

        let store = Store::connect(config.location()?, config.database_connections.get()).await?;
        let model = "default".parse().context("the default model's name")?;
        store
            .ensure_model(&model, &ModelConfig::default(), Timestamp::now())
            .await?;
        let left = store.requeue_orphans(&owner, Timestamp::now()).await?;
        if left > 0 {
            tracing::info!(jobs = left, "taking up jobs that the last run left");
        }

        let engine = start_engine(&config.engine.backbone, &config.engine_config()).await?;
        let registry = Arc::new(Registry::new(
            store.clone(),
            engine.device().clone(),
            engine.info().digest,
            config.engine.pinned_versions,
        ));
        registry.refresh().await?;
        let learner = Learner::new(
            engine.clone(),
            Arc::clone(&registry),
            store.clone(),
            owner,
            config.learner_config(),
        )?;

        let listener = TcpListener::bind(config.listen)
            .await
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let addr = listener.local_addr()?;
        let api = Api {
            engine,
            registry,
            learner: Arc::new(learner),
            store: store.clone(),
            limits: Arc::new(config.http_limits()),
            metrics,
            spool: Arc::new(spool),
            stopping: CancellationToken::new(),
            closing: CancellationToken::new(),
        };
        Ok(Self {
            lock,
            listener,
            connections: config.connection_limits(),
            addr,
            api,
            store,
            linger: Duration::from_secs(config.linger_seconds),
            drain: Duration::from_secs(config.drain_seconds),
        })
    }

    /// The address that was bound.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The whole interface, without a connection.
    pub fn router(&self) -> Router {
        http::router(self.api.clone())
    }

    /// Cancelling it stops the server as a signal does.
    pub fn stopping(&self) -> CancellationToken {
        self.api.stopping.clone()
    }

    /// Serves until [`Self::stopping`] is cancelled, then stops in order.
    ///
    /// # Errors
    /// When the device is lost.
    pub async fn run_until_stopped(self) -> anyhow::Result<()> {
        let Self {
            lock: _lock,
            listener,
            connections,
            api,
            store,
            linger,
            drain,
            ..
        } = self;
        let (stopping, closing) = (api.stopping.clone(), api.closing.clone());
        let workers = TaskTracker::new();
        let learner = Arc::clone(&api.learner);
        workers.spawn(api.learner.worker().run(stopping.clone()));
        workers.spawn(follow_store(
            Arc::clone(&api.registry),
            store.clone(),
            closing.clone(),
        ));
        workers.spawn(metrics::upkeep(api.metrics.clone(), closing.clone()));
        workers.close();

        let engine = api.engine.clone();
        let serve = http::serve(listener, http::router(api), connections, closing.clone());
        let told = async {
            stopping.cancelled().await;
            tokio::select! {
                () = tokio::time::sleep(linger) => closing.cancel(),
                () = closing.cancelled() => {}
            }
        };
        let mut serving = Box::pin(join(serve, told));
        let bounded = async {
            closing.cancelled().await;
            tokio::time::sleep(drain).await;
        };
        let mut lost = false;
        tokio::select! {
            ((), ()) = &mut serving => {}
            () = bounded => tracing::warn!("some requests did not end in time and are cut off"),
            () = engine.lost() => lost = true,
        }
        stopping.cancel();
        closing.cancel();
        if lost {
            // Whoever waits for the device is told so.
            let _some_may_be_late = tokio::time::timeout(PARTING, &mut serving).await;
        }
        drop(serving);
        // What a worker leaves unfinished is in the store as it was last saved; the next start takes it up.
        if tokio::time::timeout(drain, join(workers.wait(), learner.finish()))
            .await
            .is_err()
        {
            tracing::warn!(
                "the running job, or what else is written, did not stop in time and is left as it was last saved"
            );
        }
        tokio::task::spawn_blocking(move || engine.stop()).await?;
        // A database that has gone may never answer.
        if tokio::time::timeout(drain, store.close()).await.is_err() {
            tracing::warn!("the database did not answer in time");
        }
        tracing::info!("stopped");
        // A supervisor starts another process, which can use the device again.
        anyhow::ensure!(!lost, "the device is lost to this process");
        Ok(())
    }
}

/// There is no authentication yet, so only this machine may connect unless the operator insists.
fn refuse_open_address(config: &ServeConfig) -> anyhow::Result<()> {
    if config.listen.ip().is_loopback() || config.allow_remote {
        return Ok(());
    }
    anyhow::bail!(
        "{} can be reached from other machines and anybody there could teach and roll back; pass --allow-remote \
         where something in front of the server authenticates",
        config.listen
    )
}

/// One server a data directory: two would take each other's jobs for their own.
fn lock_directory(directory: &Path) -> anyhow::Result<File> {
    let path = directory.join("lock");
    let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    lock.try_lock()
        .with_context(|| format!("another server uses {}", directory.display()))?;
    Ok(lock)
}

/// Loads the backbone and starts an engine with it.
///
/// # Errors
/// Whatever keeps it from encoding, in words for a person.
pub(crate) async fn start_engine(backbone: &BackboneArgs, config: &EngineConfig) -> anyhow::Result<Engine> {
    let started = Instant::now();
    let backbone = load_backbone(backbone).await?;
    let instructions = backbone.instructions();
    let engine = Engine::start(backbone, config)?;
    engine
        .check(Duration::ZERO)
        .await
        .context("the backbone's first forward failed")?;
    let info = engine.info();
    let ms = started.elapsed().as_millis() as u64;
    tracing::info!(backbone = info.name, digest = %info.digest, dim = info.dim, device = info.device, instructions, ms, "backbone ready");
    Ok(engine)
}

/// Loads a backbone onto its device.
///
/// # Errors
/// In words for an operator.
pub(crate) async fn load_backbone(args: &BackboneArgs) -> anyhow::Result<Backbone> {
    // The pool that tensors are computed on; a second server in the same process shares the first one's.
    if rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads())
        .build_global()
        .is_err()
    {
        tracing::debug!("the tensor threads run already");
    }
    let device = open_device(args.device)?;
    let source = args.backbone.clone().unwrap_or_default();
    Backbone::load(&source, &device, args.dtype)
        .await
        .context("cannot load the backbone")
}

fn open_device(choice: DeviceChoice) -> anyhow::Result<Device> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Auto => open_device(DeviceChoice::Cuda(0)).or_else(|error| {
            if candle_core::utils::cuda_is_available() {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "there is no GPU to use: the processor computes"
                );
            }
            Ok(Device::Cpu)
        }),
        // One stream for all threads: of itself candle has one for each, and what one has begun others do not wait for.
        DeviceChoice::Cuda(number) => {
            let device = Device::new_cuda_with_stream(number).with_context(|| {
                format!("cannot open cuda:{number}; was this binary built with the cuda feature?")
            })?;
            // Kernels are compiled for a compute capability and those after it.
            let runs =
                Tensor::new(&[1.0_f32], &device).and_then(|one| one.affine(2.0, 0.0)?.to_vec1::<f32>());
            runs.with_context(|| {
                format!("cuda:{number} does not run this binary's kernels; was it built for a newer GPU?")
            })?;
            Ok(device)
        }
    }
}

/// Brings in activations that others made in the same store: at once where the store announces them, and always
/// within [`REFRESH`].
async fn follow_store(registry: Arc<Registry>, store: Store, closing: CancellationToken) {
    let mut feed = None;
    let mut is_announced = true;
    loop {
        if is_announced && feed.is_none() {
            match store.activation_feed().await {
                Ok(Some(opened)) => feed = Some(opened),
                Ok(None) => is_announced = false,
                Err(error) => warn(&error, "activations are not announced; polling"),
            }
        }
        // Read after listening began: what was activated before that is not announced.
        if let Err(error) = registry.refresh().await {
            warn(&error, "cannot see what is active");
        }
        let next_refresh = tokio::time::sleep(REFRESH);
        tokio::pin!(next_refresh);
        loop {
            tokio::select! {
                () = closing.cancelled() => return,
                () = &mut next_refresh => break,
                announced = announced(&mut feed) => match announced {
                    Ok(Announcement::Model(model)) => {
                        if let Err(error) = registry.follow(&model).await {
                            warn(&error, "an announced activation does not serve yet");
                        }
                    }
                    Ok(Announcement::Missed) => break,
                    Err(error) => {
                        warn(&error, "activations are no longer announced");
                        feed = None;
                    }
                },
            }
        }
    }
}

/// The next announcement; never, where there is nobody to announce anything.
async fn announced(feed: &mut Option<ActivationFeed>) -> Result<Announcement, StoreError> {
    match feed {
        Some(feed) => feed.next().await,
        None => std::future::pending().await,
    }
}

fn warn(error: &(dyn std::error::Error + 'static), what: &str) {
    tracing::warn!(error, "{what}");
}
