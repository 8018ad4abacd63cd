//! `clipkeep evaluate` on images: the backbone is loaded, encodes them, and goes before the first fit.

use anyhow::Context as _;

use super::{Evaluate, Prepared, progress_bar};
use crate::app::start_engine;
use crate::domain::{ModelConfig, Reads, Split, Strategy};
use crate::evaluation::{
    ClassOrder, Contender, Encoded, PictureSource, Pictures, Protocol, Wanted, encode, prompts,
};

impl Evaluate {
    pub(super) async fn on_images(&self, contenders: &[Contender]) -> anyhow::Result<Prepared> {
        let pictures = Pictures::list(&self.sources())?;
        let classes = pictures.classes().to_vec();
        let tasks = self.split(classes.len())?;
        let templates = match self.templates.as_slice() {
            [] => ModelConfig::default().templates,
            given => given.to_vec(),
        };
        let engine = start_engine(&self.backbone, &self.backbone.offline_engine()).await?;

        let reads_tokens = |contender: &Contender| contender.config.strategy.reads() == Reads::Tokens;
        let wanted = Wanted {
            reads: if contenders.iter().any(reads_tokens) {
                Reads::Tokens
            } else {
                Reads::Features
            },
            anchors: self.anchors(),
            templates: &templates,
        };
        let bar = progress_bar(pictures.len() as u64)?;
        bar.set_message("images encoded");
        let encoded = encode(pictures, &engine, &wanted, &mut |more| bar.inc(more)).await;
        bar.finish_and_clear();
        let Encoded { data, left_out } = encoded?;

        let trains_prompts = |contender: &Contender| contender.config.strategy == Strategy::Prompt;
        let needs_prompts = contenders.iter().any(trains_prompts);
        let protocol = async |order: ClassOrder| -> anyhow::Result<Protocol> {
            let prompts = match templates.first().filter(|_| needs_prompts) {
                Some(template) => Some(prompts(&engine, &classes, order, template).await?),
                None => None,
            };
            Ok(Protocol {
                order,
                tasks: tasks.clone(),
                prompts,
            })
        };
        let mut protocols = Vec::new();
        for order in self.orders() {
            protocols.push(protocol(order).await.context("cannot make prompts")?);
        }
        // What fits need of the backbone they hold themselves.
        tokio::task::spawn_blocking(move || engine.stop()).await?;
        Ok(Prepared {
            data,
            protocols,
            left_out,
        })
    }

    fn sources(&self) -> Vec<PictureSource> {
        let given = [
            (&self.images, None),
            (&self.train, Some(Split::Train)),
            (&self.test, Some(Split::HeldOut)),
        ];
        let sources = given.into_iter().flat_map(|(paths, part)| {
            paths.iter().map(move |path| PictureSource {
                path: path.clone(),
                part,
            })
        });
        sources.collect()
    }
}
