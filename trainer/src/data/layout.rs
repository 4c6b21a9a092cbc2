//! The layouts of tagged files: which lines hold a word, and where in them it stands with its tag.

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// How a file is laid out. A word stands on a line of its own and a blank line ends a sentence, but for `Slash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Columns between tabs: the word, then its tag, unless the settings name others.
    Tsv,
    /// The 10 columns of CoNLL-U; the tag is UPOS, unless the settings name another column (5 for XPOS).
    Conllu,
    /// CoNLL-2003: four columns between spaces, the tag in the last, and `-DOCSTART-` before a document.
    Conll2003,
    /// The corpora of VLSP: columns between tabs or spaces, the syllables of a word joined by `_`, marks like `<s>` and
    /// `</s>` or `-DOCSTART-` on lines of their own. The tag is in column 2 for parts of speech and 4 for entities,
    /// unless the settings name another.
    Vlsp,
    /// The corpora of VLSP, running: a sentence on a line, its words between spaces as `word/TAG`, the syllables of a word
    /// joined by `_`. Marks as in `Vlsp`.
    Slash,
}

/// Columns of the word and of its tag, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The word.
    pub word: usize,
    /// Its tag.
    pub tag: usize,
}

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'l> {
    /// A word with its tag.
    Word(&'l str, &'l str),
    /// All words of a sentence with their tags.
    Sentence(Vec<(&'l str, &'l str)>),
    /// The end of a sentence.
    End,
    /// Nothing of the text.
    Skip,
}

impl Layout {
    /// Takes a line apart.
    pub(super) fn line<'l>(self, columns: Columns, line: &'l str) -> Result<Line<'l>> {
        let line = line.trim_end_matches(['\r', '\n']);
        if line.trim().is_empty() {
            return Ok(Line::End);
        }
        match self {
            Self::Tsv => tsv(columns, line),
            Self::Conllu => conllu(columns, line),
            Self::Conll2003 | Self::Vlsp if line.starts_with("-DOCSTART-") => Ok(Line::End),
            Self::Conll2003 => spaced(columns, line),
            Self::Vlsp => vlsp(columns, line),
            Self::Slash => slash(line),
        }
    }
}

fn pick<'l>(columns: Columns, fields: &[&'l str], line: &str) -> Result<Line<'l>> {
    let field = |what: &str, column: usize| match fields.get(column - 1) {
        Some(field) if !field.trim().is_empty() => Ok(*field),
        Some(_) => bail!("expected a {what} in column {column}, found nothing in {line:?}"),
        None => bail!("expected a {what} in column {column}, found {} columns in {line:?}", fields.len()),
    };
    Ok(Line::Word(field("word", columns.word)?, field("tag", columns.tag)?))
}

fn tsv(columns: Columns, line: &str) -> Result<Line<'_>> {
    let fields: Vec<&str> = line.split('\t').collect();
    if columns == (Columns { word: 1, tag: 2 }) {
        ensure!(fields.len() == 2, "expected a unit, a tab and a tag, found {line:?}");
    }
    pick(columns, &fields, line)
}

fn conllu(columns: Columns, line: &str) -> Result<Line<'_>> {
    if line.starts_with('#') {
        return Ok(Line::Skip);
    }
    let fields: Vec<&str> = line.split('\t').collect();
    ensure!(fields.len() == 10, "expected the 10 columns of CoNLL-U, found {}", fields.len());
    if fields[0].contains(['-', '.']) {
        return Ok(Line::Skip); // a multiword token or an empty node: its words follow
    }
    ensure!(fields[0].parse::<usize>().is_ok(), "expected a number in column 1 (ID), found {:?}", fields[0]);
    let tag = fields.get(columns.tag - 1).copied().unwrap_or_default();
    let upos = !tag.is_empty() && tag.chars().all(|c| c.is_ascii_uppercase());
    ensure!(columns.tag != 4 || upos, "expected a part of speech in column 4 (UPOS), found {tag:?}");
    ensure!(tag != "_", "expected a tag in column {}, found \"_\"", columns.tag);
    pick(columns, &fields, line)
}

fn spaced(columns: Columns, line: &str) -> Result<Line<'_>> {
    pick(columns, &line.split_whitespace().collect::<Vec<_>>(), line)
}

/// A mark is the only thing on its line, so that a text may hold `<` as a word.
fn mark(line: &str) -> Option<Line<'_>> {
    let mark = line.trim();
    let is_mark = mark.len() > 2 && mark.starts_with('<') && mark.ends_with('>') && !line.contains('\t');
    is_mark.then_some(if matches!(mark, "<s>" | "</s>") { Line::End } else { Line::Skip })
}

fn vlsp(columns: Columns, line: &str) -> Result<Line<'_>> {
    if let Some(mark) = mark(line) {
        return Ok(mark);
    }
    // Where there are tabs, a word may hold spaces.
    match line.contains('\t') {
        true => pick(columns, &line.split('\t').collect::<Vec<_>>(), line),
        false => spaced(columns, line),
    }
}

fn slash(line: &str) -> Result<Line<'_>> {
    if let Some(mark) = mark(line) {
        return Ok(mark);
    }
    let word = |token| match str::rsplit_once(token, '/') {
        Some((word, tag)) if !word.is_empty() && !tag.is_empty() => Ok((word, tag)),
        _ => bail!("expected word/TAG, found {token:?}"),
    };
    Ok(Line::Sentence(line.split_whitespace().map(word).collect::<Result<_>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(layout: Layout, columns: (usize, usize), line: &str) -> Result<Line<'_>> {
        layout.line(Columns { word: columns.0, tag: columns.1 }, line)
    }

    #[test]
    fn words_and_tags_come_from_their_columns() {
        let read = [
            (Layout::Tsv, (1, 2), "bác sĩ\tN"),
            (Layout::Tsv, (2, 4), "1\tbác sĩ\tx\tN"),
            (Layout::Conllu, (2, 4), "1\tbác sĩ\t_\tN\tNN\t_\t_\t_\t_\t_"),
            (Layout::Conllu, (2, 5), "1\tbác sĩ\t_\tNOUN\tN\t_\t_\t_\t_\t_"),
            (Layout::Vlsp, (1, 2), "bác sĩ\tN\tB-NP\tO"),
        ];
        for (layout, columns, line) in read {
            assert_eq!(word(layout, columns, line).unwrap(), Line::Word("bác sĩ", "N"), "{line}");
        }
        assert_eq!(word(Layout::Vlsp, (1, 4), "Hà_Nội  Np B-NP B-LOC").unwrap(), Line::Word("Hà_Nội", "B-LOC"));
        assert_eq!(word(Layout::Conll2003, (1, 4), "Huế NNP B-NP B-LOC\r").unwrap(), Line::Word("Huế", "B-LOC"));
    }

    #[test]
    fn marks_are_not_words() {
        assert_eq!(word(Layout::Vlsp, (1, 2), "<s>").unwrap(), Line::End);
        assert_eq!(word(Layout::Vlsp, (1, 2), "<title>").unwrap(), Line::Skip);
        assert_eq!(word(Layout::Vlsp, (1, 2), "<\tCH").unwrap(), Line::Word("<", "CH"));
        assert_eq!(word(Layout::Conll2003, (1, 4), "-DOCSTART- -X- -X- O").unwrap(), Line::End);
        assert_eq!(word(Layout::Conllu, (2, 4), "# text = x").unwrap(), Line::Skip);
        assert_eq!(word(Layout::Conllu, (2, 4), "1-2\tx\t_\t_\t_\t_\t_\t_\t_\t_").unwrap(), Line::Skip);
    }

    #[test]
    fn a_line_of_words_with_slashes_is_a_sentence() {
        let read = word(Layout::Slash, (1, 2), "Hà_Nội/Np 3//M //CH đẹp/A").unwrap();
        assert_eq!(read, Line::Sentence(vec![("Hà_Nội", "Np"), ("3/", "M"), ("/", "CH"), ("đẹp", "A")]));
        assert_eq!(word(Layout::Slash, (1, 2), "<p>").unwrap(), Line::Skip);
    }

    #[test]
    fn what_is_missing_is_said() {
        let error = |layout, columns, line| word(layout, columns, line).unwrap_err().to_string();
        assert!(error(Layout::Vlsp, (1, 4), "Huế Np").contains("expected a tag in column 4, found 2 columns"));
        assert!(error(Layout::Tsv, (1, 2), "\tN").contains("expected a word in column 1, found nothing"));
        assert!(error(Layout::Slash, (1, 2), "đẹp/A xanh").contains("expected word/TAG, found \"xanh\""));
        let xpos = "1\tx\t_\tNOUN\t_\t_\t_\t_\t_\t_";
        assert!(error(Layout::Conllu, (2, 5), xpos).contains("expected a tag in column 5, found \"_\""));
    }
}
