//! `vitag convert`: annotations to the formats of other tools, and back.

use std::fs;
use std::io::{self, BufRead as _, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::Value;

use super::columns::{
    column_documents, conllu_documents, embedded, read_columns, read_conllu, write_columns, write_conllu,
};
use super::foreign::{Labelled, labels, relabel};
use super::offsets::in_code_points;
use super::parquet::{ParquetSink, annotation_of, json_rows};
use super::{brat, json_forms};
use crate::encode::Annotation;

/// A format of annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// What vitag writes: an annotation in JSON a line.
    Annotations,
    /// The same in the nested columns of Parquet.
    Parquet,
    /// CoNLL-U, entities as NER= in the last column.
    Conllu,
    /// A word and its entity in BIO a line.
    Conll2,
    /// A word, its part of speech, no chunk, and its entity a line.
    Conll4,
    /// What the token-classification pipeline of Hugging Face answers, a list a line; to write only.
    HuggingFace,
    /// Doc.to_json of spaCy, a document a line.
    Spacy,
    /// JSON Lines of doccano's sequence labelling.
    Doccano,
    /// Tasks of Label Studio with predictions, in one JSON array.
    LabelStudio,
    /// A folder of pairs of .txt and .ann.
    Brat,
}

impl Kind {
    /// What is lost on the way to this format and back; nothing of those that carry all along.
    pub fn drops(self, lean: bool) -> Option<&'static str> {
        match self {
            Self::Annotations | Self::Parquet => None,
            Self::Conllu | Self::Spacy | Self::Doccano | Self::LabelStudio if !lean => None,
            Self::Conllu => Some("source, model, scores, sentences' places, white space other than single spaces"),
            Self::Conll2 => Some("id, source, model, scores, parts of speech, all white space, underscores in words"),
            Self::Conll4 => Some("id, source, model, scores, all white space, underscores in words"),
            Self::HuggingFace => Some("everything but the entities"),
            Self::Spacy => Some("id, source, model, scores"),
            Self::Doccano | Self::Brat => Some("everything but text and entities"),
            Self::LabelStudio => Some("everything but text, entities and the model's name"),
        }
    }
}

/// A file cannot be converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// It cannot be read or written.
    #[error("{0}: {1}")]
    Io(String, io::Error),
    /// It is not what it should be.
    #[error("{input}: document {number}: {reason}")]
    Document {
        /// The file.
        input: String,
        /// Which document of it, from 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// There is no text in this format.
    #[error("--from hugging-face: the answers of the pipeline hold no texts")]
    OnlyWritten,
}

/// Converts `input` to `output`, `-` being standard input and output; returns how many documents there were. `lean`
/// leaves out what the format has no place for.
///
/// # Errors
/// When the input is not what it should be, or a file cannot be read or written.
pub fn convert((from, input): (Kind, &Path), (to, output): (Kind, &Path), lean: bool) -> Result<usize, ConvertError> {
    let mut writer = Writer::new(to, output, lean)?;
    let mut number = 0;
    let named = |number: usize, reason: String| ConvertError::Document {
        input: input.display().to_string(),
        number: number + 1,
        reason,
    };
    read(from, input, &mut |document| {
        let annotation = document.map_err(|reason| named(number, reason))?;
        writer.push(annotation, number)?;
        number += 1;
        Ok(())
    })?;
    writer.finish()?;
    Ok(number)
}

type Each<'e> = dyn FnMut(Result<Annotation, String>) -> Result<(), ConvertError> + 'e;

fn read(kind: Kind, input: &Path, each: &mut Each<'_>) -> Result<(), ConvertError> {
    let failed = |e: io::Error| ConvertError::Io(input.display().to_string(), e);
    match kind {
        Kind::HuggingFace => Err(ConvertError::OnlyWritten),
        Kind::Parquet => {
            let file = fs::File::open(input).map_err(failed)?;
            let batches = ParquetRecordBatchReaderBuilder::try_new(file).and_then(|builder| builder.build());
            for batch in batches.map_err(|e| failed(io::Error::other(e)))? {
                let rows = batch.map_err(|e| e.to_string()).and_then(|b| json_rows(&b).map_err(|e| e.to_string()));
                for row in rows.map_err(|e| failed(io::Error::other(e)))? {
                    each(annotation_of(&row).map_err(|e| e.to_string()))?;
                }
            }
            Ok(())
        }
        Kind::Brat => {
            let entries = fs::read_dir(input).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
            let mut texts: Vec<PathBuf> = entries.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
            texts.retain(|path| path.extension().is_some_and(|end| end == "txt"));
            texts.sort();
            for (number, path) in texts.iter().enumerate() {
                let (text, ann) = (fs::read_to_string(path).map_err(failed)?, path.with_extension("ann"));
                let ann = if ann.exists() { fs::read_to_string(ann).map_err(failed)? } else { String::new() };
                each(brat::read(&text, &ann, number))?;
            }
            Ok(())
        }
        Kind::Conllu | Kind::Conll2 | Kind::Conll4 => {
            let mut text = String::new();
            open(input).and_then(|mut file| file.read_to_string(&mut text)).map_err(failed)?;
            let documents = if kind == Kind::Conllu { conllu_documents(&text) } else { column_documents(&text) };
            documents.iter().enumerate().try_for_each(|(number, document)| {
                each(match kind {
                    Kind::Conllu => conllu_annotation(document, number),
                    _ => read_columns(document, kind == Kind::Conll4, number),
                })
            })
        }
        Kind::Annotations | Kind::Spacy | Kind::Doccano | Kind::LabelStudio => {
            let mut file = BufReader::new(open(input).map_err(failed)?);
            if kind == Kind::LabelStudio && file.fill_buf().map_err(failed)?.trim_ascii_start().starts_with(b"[") {
                let all: Vec<Value> = serde_json::from_reader(file).map_err(|e| failed(e.into()))?;
                return all.iter().enumerate().try_for_each(|(number, one)| each(of_json(kind, one, number)));
            }
            for (number, line) in file.lines().enumerate() {
                let line = line.map_err(failed)?;
                if !line.trim().is_empty() {
                    let value = serde_json::from_str(&line).map_err(|e| e.to_string());
                    each(value.and_then(|value| of_json(kind, &value, number)))?;
                }
            }
            Ok(())
        }
    }
}

fn open(input: &Path) -> io::Result<Box<dyn Read>> {
    if input == Path::new("-") { Ok(Box::new(io::stdin())) } else { Ok(Box::new(fs::File::open(input)?)) }
}

fn conllu_annotation(document: &str, number: usize) -> Result<Annotation, String> {
    let read = read_conllu(document, number)?;
    let Some(whole) = embedded(document) else { return Ok(read) };
    let whole: Annotation = serde_json::from_str(whole).map_err(|e| format!("its vitag comment: {e}"))?;
    // By words and tags: the places are those of the text as CoNLL-U has it.
    let spelt = |a: &Annotation| conllu_words(a);
    Ok(if spelt(&whole) == spelt(&read) { whole } else { read })
}

/// What CoNLL-U says of the words.
fn conllu_words(annotation: &Annotation) -> Vec<String> {
    let lines = super::conllu(annotation);
    lines.lines().filter(|line| !line.starts_with('#')).map(ToOwned::to_owned).collect()
}

fn of_json(kind: Kind, value: &Value, number: usize) -> Result<Annotation, String> {
    let found = match kind {
        Kind::Spacy => json_forms::spacy_labels(value)?,
        Kind::Doccano => json_forms::doccano_labels(value)?,
        Kind::LabelStudio => json_forms::label_studio_labels(value)?,
        _ => return serde_json::from_value(value.clone()).map_err(|e| e.to_string()),
    };
    if let Some(whole) = json_forms::embedded(value) {
        let whole: Annotation = serde_json::from_value(whole.clone()).map_err(|e| format!("its vitag field: {e}"))?;
        return changed(whole, found);
    }
    match kind {
        Kind::Spacy => json_forms::read_spacy(value, number),
        Kind::Doccano => json_forms::read_doccano(value, number),
        _ => json_forms::read_label_studio(value, number),
    }
}

/// The annotation that was carried along, with the labels that are there now.
fn changed(whole: Annotation, mut found: Vec<Labelled>) -> Result<Annotation, String> {
    let mut in_points = in_code_points(whole.clone());
    let mut had = labels(&in_points);
    had.sort();
    found.sort();
    if had == found {
        return Ok(whole);
    }
    relabel(&mut in_points, found)?;
    Ok(in_points)
}

/// Writes annotations in a format.
struct Writer {
    kind: Kind,
    lean: bool,
    name: String,
    output: Output,
}

enum Output {
    Folder(PathBuf),
    Parquet(Box<ParquetSink<Box<dyn Write + Send>>>),
    Text(Box<dyn Write + Send>),
}

impl Writer {
    fn new(kind: Kind, output: &Path, lean: bool) -> Result<Self, ConvertError> {
        let name = output.display().to_string();
        let file = || -> io::Result<Box<dyn Write + Send>> {
            if output == Path::new("-") {
                return Ok(Box::new(BufWriter::new(io::stdout())));
            }
            Ok(Box::new(BufWriter::new(fs::File::create(output)?)))
        };
        let output = match kind {
            Kind::Brat => fs::create_dir_all(output).map(|()| Output::Folder(output.to_owned())),
            Kind::Parquet => file().and_then(|file| Ok(Output::Parquet(Box::new(ParquetSink::new(file)?)))),
            _ => file().map(Output::Text),
        };
        let output = output.map_err(|e| ConvertError::Io(name.clone(), e))?;
        Ok(Self { kind, lean, name, output })
    }

    fn push(&mut self, annotation: Annotation, number: usize) -> Result<(), ConvertError> {
        let written = self.write(annotation, number);
        written.map_err(|e| ConvertError::Io(self.name.clone(), e))
    }

    fn write(&mut self, annotation: Annotation, number: usize) -> io::Result<()> {
        match &mut self.output {
            Output::Parquet(sink) => Ok(sink.push(&serde_json::to_vec(&annotation)?)?),
            Output::Folder(folder) => {
                let annotation = in_code_points(annotation);
                let path = folder.join(format!("{number:06}.txt"));
                fs::write(&path, &annotation.text)?;
                fs::write(path.with_extension("ann"), brat::write_ann(&annotation))
            }
            Output::Text(out) => {
                if self.kind == Kind::LabelStudio {
                    out.write_all(if number == 0 { b"[\n" } else { b",\n" })?;
                }
                let text = text_of(self.kind, annotation, self.lean)?;
                out.write_all(text.as_bytes())
            }
        }
    }

    fn finish(self) -> Result<(), ConvertError> {
        let finished = match self.output {
            Output::Folder(_) => Ok(()),
            Output::Parquet(sink) => sink.finish().map_err(io::Error::other).and_then(|mut file| file.flush()),
            Output::Text(mut out) => {
                let end = if self.kind == Kind::LabelStudio { "\n]\n" } else { "" };
                out.write_all(end.as_bytes()).and_then(|()| out.flush())
            }
        };
        finished.map_err(|e| ConvertError::Io(self.name, e))
    }
}

fn text_of(kind: Kind, annotation: Annotation, lean: bool) -> io::Result<String> {
    if kind == Kind::Annotations {
        return Ok(serde_json::to_string(&annotation)? + "\n");
    }
    let whole = serde_json::to_value(&annotation)?;
    let annotation = in_code_points(annotation);
    let mut value = match kind {
        Kind::Conllu => return Ok(write_conllu(&annotation, (!lean).then(|| whole.to_string()).as_deref())),
        Kind::Conll2 | Kind::Conll4 => return Ok(write_columns(&annotation, kind == Kind::Conll4)),
        Kind::HuggingFace => return Ok(json_forms::write_hugging_face(&annotation).to_string() + "\n"),
        Kind::Spacy => json_forms::write_spacy(&annotation),
        Kind::Doccano => json_forms::write_doccano(&annotation),
        _ => json_forms::write_label_studio(&annotation),
    };
    if !lean {
        json_forms::embed(&mut value, whole);
    }
    let end = if kind == Kind::LabelStudio { "" } else { "\n" };
    Ok(value.to_string() + end)
}
