//! Which snapshot serves: one watch channel a model, and a bounded cache of pinned older versions.
//!
//! The store is the truth. A version is published here only after the transaction that made it active, and
//! [`Registry::refresh`] brings in what others activated in the same store. Readers take one [`Arc`] and keep it for
//! a whole batch, so that an answer never mixes versions.

mod pinned;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Device;
use jiff::Timestamp;
use tokio::sync::watch;

use self::pinned::{Found, Pinned, Turn};
use crate::adapter::{Head, Snapshot, SnapshotError};
use crate::blocking;
use crate::domain::{Activation, Digest, Model, ModelConfig, ModelName, VersionNumber};
use crate::metrics;
use crate::store::{Activate, ActivateError, Activated, CreateModelError, Store, StoreError};

/// Why a version could not be served.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such model.
    #[error("there is no model {0}")]
    UnknownModel(ModelName),
    /// The model has no such version.
    #[error("model {model} has no version {version}")]
    UnknownVersion {
        /// The model.
        model: ModelName,
        /// The version asked for.
        version: VersionNumber,
    },
    /// The store failed.
    #[error("the store failed")]
    Store(#[from] StoreError),
    /// A stored snapshot cannot be used.
    #[error("version {version} of model {model} cannot be loaded")]
    Snapshot {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionNumber,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// Another version is active than the caller expected.
    #[error("the active version of model {model} is not the expected one")]
    ActiveMoved {
        /// The model.
        model: ModelName,
        /// The version that is active.
        active: Option<VersionNumber>,
    },
    /// The version was learned on another backbone than the one loaded.
    #[error("version {version} of model {model} was learned on another backbone ({backbone})")]
    OtherBackbone {
        /// The model.
        model: ModelName,
        /// The version.
        version: VersionNumber,
        /// Digest of the backbone it was learned on.
        backbone: String,
    },
}

/// A version, ready to answer.
pub struct Serving {
    /// The model.
    pub model: ModelName,
    /// Its number.
    pub number: VersionNumber,
    /// Digest of the snapshot's bytes.
    pub digest: Digest,
    /// Its classes and head.
    pub snapshot: Snapshot,
    /// The snapshot's head, to be shared with the device thread.
    pub head: Arc<Head>,
}

impl Serving {
    /// A snapshot as the version it is.
    pub fn new(model: ModelName, number: VersionNumber, digest: Digest, snapshot: Snapshot) -> Self {
        // Tensors are shared, so this copies no weights.
        let head = Arc::new(snapshot.head().clone());
        Self {
            model,
            number,
            digest,
            snapshot,
            head,
        }
    }
}

/// Models read from the store at a time.
const PAGE: u32 = 200;

/// What answers for a model.
#[derive(Clone)]
enum Served {
    /// Nothing yet: it has learned nothing.
    Nothing,
    /// Its active version.
    Version(Arc<Serving>),
    /// Its active version was learned on another backbone, the one with this digest.
    OtherBackbone(VersionNumber, String),
}

impl Served {
    fn number(&self) -> Option<VersionNumber> {
        match self {
            Self::Nothing => None,
            Self::Version(serving) => Some(serving.number),
            Self::OtherBackbone(number, _) => Some(*number),
        }
    }
}

/// A model that is served.
#[derive(Clone)]
struct Slot {
    /// Said when it was created, and never changed.
    config: Arc<ModelConfig>,
    served: watch::Sender<Served>,
}

/// The owner of what serves.
pub struct Registry {
    store: Store,
    device: Device,
    backbone: Digest,
    slots: RwLock<HashMap<ModelName, Slot>>,
    pinned: Pinned,
    following: tokio::sync::Mutex<()>,
}

impl Registry {
    /// An empty registry; [`Self::refresh`] fills it. Keeps at most `pinned` inactive versions in memory.
    pub fn new(store: Store, device: Device, backbone: Digest, pinned: NonZeroUsize) -> Self {
        Self {
            store,
            device,
            backbone,
            slots: RwLock::default(),
            pinned: Pinned::new(pinned),
            following: tokio::sync::Mutex::default(),
        }
    }

    /// Makes what serves equal to what the store says is active.
    ///
    /// # Errors
    /// When the store fails. A model whose active version cannot be loaded is logged and keeps what it served.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let mut moved = Vec::new();
        let mut last = None;
        loop {
            let page = self.store.models(last.as_ref(), PAGE).await?;
            let is_last = page.len() < PAGE as usize;
            last = page.last().map(|model| model.name.clone());
            let has_moved = |model: &Model| self.slot(model).served.borrow().number() != model.active;
            moved.extend(page.into_iter().filter(has_moved).map(|model| model.name));
            if is_last {
                break;
            }
        }
        for name in moved {
            match self.follow(&name).await {
                Ok(()) => {}
                Err(RegistryError::Store(error)) => return Err(error),
                // Said once; whoever asks the model hears it again.
                Err(RegistryError::OtherBackbone { version, .. }) => {
                    tracing::warn!(model = %name, %version, "the active version is of another backbone and cannot answer");
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, model = %name, "the active version cannot be served");
                }
            }
        }
        Ok(())
    }

    /// Lets the version answer that the store says is active. Whoever changed that calls this afterwards; calls are
    /// served one at a time, so that the last one leaves what the store holds.
    ///
    /// # Errors
    /// When the store fails or the version cannot be served; what served before still does.
    pub async fn follow(&self, model: &ModelName) -> Result<(), RegistryError> {
        let _turn = self.following.lock().await;
        let unknown = || RegistryError::UnknownModel(model.clone());
        let stored = self.store.model(model).await?.ok_or_else(unknown)?;
        let slot = self.slot(&stored).served;
        let served = slot.borrow().number();
        let Some(number) = stored.active.filter(|&active| served != Some(active)) else {
            return Ok(());
        };
        let serving = match self.version(model, number).await {
            Ok(serving) => serving,
            Err(error) => {
                if let RegistryError::OtherBackbone { backbone, .. } = &error {
                    slot.send_replace(Served::OtherBackbone(number, backbone.clone()));
                }
                return Err(error);
            }
        };
        if let Served::Version(previous) = slot.send_replace(Served::Version(serving)) {
            // The version one would roll back to stays at hand.
            self.keep(previous);
        }
        metrics::version_activated(model, number);
        self.measure(model, number).await;
        Ok(())
    }

    /// Tells the metrics how good a version is. It serves whether or not that can be read.
    async fn measure(&self, model: &ModelName, number: VersionNumber) {
        let history = self.store.accuracy(model, number).await;
        if let Err(error) = &history {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, %model, "the accuracy of the active version cannot be read");
        }
        metrics::accuracy_measured(model, history.ok().and_then(|history| history.matrix.summary()));
    }

    /// Keeps a version in memory for [`Self::version`] and [`Self::follow`].
    pub fn keep(&self, serving: Arc<Serving>) {
        self.pinned.keep(serving);
    }

    /// Creates a model that has learned nothing.
    ///
    /// # Errors
    /// [`CreateModelError`] when the name is taken.
    pub async fn create(
        &self,
        name: &ModelName,
        config: &ModelConfig,
        now: Timestamp,
    ) -> Result<Model, CreateModelError> {
        let model = self.store.create_model(name, config, now).await?;
        self.slot(&model);
        Ok(model)
    }

    /// How a model is configured.
    ///
    /// # Errors
    /// When there is no such model, or it is not served yet and the store fails.
    pub async fn config(&self, model: &ModelName) -> Result<Arc<ModelConfig>, RegistryError> {
        if let Some(slot) = self.known(model) {
            return Ok(slot.config);
        }
        // Another server may have made it a moment ago.
        let stored = self.store.model(model).await?;
        let stored = stored.ok_or_else(|| RegistryError::UnknownModel(model.clone()))?;
        Ok(Arc::new(stored.config))
    }

    /// What answers for a model now; `None` inside until its first task is learned.
    ///
    /// # Errors
    /// [`RegistryError::UnknownModel`], or [`RegistryError::OtherBackbone`] when what the model knows is of another
    /// backbone.
    pub fn active(&self, model: &ModelName) -> Result<Option<Arc<Serving>>, RegistryError> {
        match self.served(model)? {
            Served::Nothing => Ok(None),
            Served::Version(serving) => Ok(Some(serving)),
            Served::OtherBackbone(version, backbone) => Err(RegistryError::OtherBackbone {
                model: model.clone(),
                version,
                backbone,
            }),
        }
    }

    /// A version by number, active or not.
    ///
    /// # Errors
    /// When it does not exist, cannot be read, or belongs to another backbone.
    pub async fn version(
        &self,
        model: &ModelName,
        number: VersionNumber,
    ) -> Result<Arc<Serving>, RegistryError> {
        match self.served(model) {
            Ok(Served::Version(serving)) if serving.number == number => return Ok(serving),
            Ok(Served::Version(_) | Served::Nothing | Served::OtherBackbone(..)) => {}
            // Another server may have made it a moment ago.
            Err(RegistryError::UnknownModel(_)) if self.store.model(model).await?.is_some() => {}
            Err(error) => return Err(error),
        }
        let key = (model.clone(), number);
        if let Some(serving) = self.pinned.get(&key) {
            return Ok(serving);
        }
        // Those who ask for the same version load it once.
        let turn = match self.pinned.find(&key).await {
            Found::Here(serving) => return Ok(serving),
            Found::Stored(turn) => turn,
        };
        let (serving, _turn) = self.load(model, number, turn).await?;
        let serving = Arc::new(serving);
        self.keep(Arc::clone(&serving));
        Ok(serving)
    }

    /// Activates an existing version: loads it, commits the activation, then lets it answer.
    ///
    /// # Errors
    /// As [`Self::version`]; nothing has changed then.
    pub async fn activate(&self, wish: Activate) -> Result<Activation, RegistryError> {
        let model = wish.model.clone();
        // Loaded first: a version that cannot be served must not become active.
        self.version(&model, wish.version).await?;
        let activated = self.store.activate(wish).await.map_err(|error| match error {
            ActivateError::UnknownModel(model) => RegistryError::UnknownModel(model),
            ActivateError::UnknownVersion(version) => RegistryError::UnknownVersion {
                model: model.clone(),
                version,
            },
            ActivateError::ActiveMoved { active } => RegistryError::ActiveMoved {
                model: model.clone(),
                active,
            },
            ActivateError::Store(error) => error.into(),
        })?;
        self.follow(&model).await?;
        Ok(match activated {
            Activated::Changed(activation) | Activated::Unchanged(activation) => activation,
        })
    }

    /// Where snapshots live: the device that runs the backbone.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Reads a version; gives the turn back, which it keeps until then also where nobody waits for it any more.
    async fn load(
        &self,
        model: &ModelName,
        number: VersionNumber,
        turn: Turn,
    ) -> Result<(Serving, Turn), RegistryError> {
        let unknown = || RegistryError::UnknownVersion {
            model: model.clone(),
            version: number,
        };
        let content = self.store.snapshot(model, number).await?.ok_or_else(unknown)?;
        let digest = content.digest();
        let device = self.device.clone();
        let decoding = blocking::run(move || (Snapshot::decode(content.bytes(), &device), turn));
        let (decoded, turn) = decoding.await;
        let snapshot = decoded.map_err(|source| RegistryError::Snapshot {
            model: model.clone(),
            version: number,
            source,
        })?;
        if snapshot.backbone() != self.backbone.to_string() {
            let backbone = snapshot.backbone().to_owned();
            return Err(RegistryError::OtherBackbone {
                model: model.clone(),
                version: number,
                backbone,
            });
        }
        Ok((Serving::new(model.clone(), number, digest, snapshot), turn))
    }

    fn served(&self, model: &ModelName) -> Result<Served, RegistryError> {
        let slot = self.known(model);
        slot.map(|slot| slot.served.borrow().clone())
            .ok_or_else(|| RegistryError::UnknownModel(model.clone()))
    }

    fn known(&self, model: &ModelName) -> Option<Slot> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        slots.get(model).cloned()
    }

    /// The model's slot, made where it is missing.
    fn slot(&self, model: &Model) -> Slot {
        if let Some(slot) = self.known(&model.name) {
            return slot;
        }
        let made = || Slot {
            config: Arc::new(model.config.clone()),
            served: watch::channel(Served::Nothing).0,
        };
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        slots.entry(model.name.clone()).or_insert_with(made).clone()
    }
}
