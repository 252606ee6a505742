// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

// Judges the history of a run with Porcupine: is every conversation linearizable as a list, a turn being an atomic
// read-and-append? Prints its verdict as JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// History is what the Python side writes; see tests/history/history.py.
type History struct {
	Operations []Operation             `json:"operations"`
	Stored     map[string][]StoredTurn `json:"stored"`
	Calls      []ModelCall             `json:"calls"`
	Window     *struct {
		Name  string  `json:"name"`
		Began float64 `json:"began"`
		Ended float64 `json:"ended"`
	} `json:"window"`
}

// Operation is one turn with all its requests.
type Operation struct {
	Conversation string    `json:"conversation"`
	Token        string    `json:"token"`
	Outcome      string    `json:"outcome"`
	Invoked      float64   `json:"invoked"`
	Attempts     []Attempt `json:"attempts"`
}

// Attempt is one request.
type Attempt struct {
	Invoked  float64 `json:"invoked"`
	Returned float64 `json:"returned"`
	Outcome  string  `json:"outcome"`
	Reply    string  `json:"reply"`
	Replica  string  `json:"replica"`
}

// StoredTurn is one element of a conversation in Redis.
type StoredTurn struct {
	Tokens  []string `json:"tokens"`
	Reply   *string  `json:"reply"`
	Replica *string  `json:"replica"`
	Late    bool     `json:"late"`
}

// ModelCall is what one model call showed.
type ModelCall struct {
	Tokens  []string `json:"tokens"`
	Reply   string   `json:"reply"`
	Outcome string   `json:"outcome"`
}

func main() {
	log.SetFlags(0)
	path := flag.String("history", "", "history file")
	pictures := flag.String("pictures", "", "directory for a timeline of every conversation that is not linearizable")
	seconds := flag.Float64("seconds", 60, "how long each conversation may take")
	flag.Parse()
	content, err := os.ReadFile(*path)
	if err != nil {
		log.Fatal(err)
	}
	var history History
	if err := json.Unmarshal(content, &history); err != nil {
		log.Fatal(err)
	}
	verdict := judge(history, *pictures, time.Duration(*seconds*float64(time.Second)))
	if err := json.NewEncoder(os.Stdout).Encode(verdict); err != nil {
		log.Fatal(err)
	}
}

// Verdict of a whole history; Conversations holds those that are not fine.
type Verdict struct {
	Verdict       string            `json:"verdict"`
	Operations    int               `json:"operations"`
	Conversations map[string]string `json:"conversations"`
	Pictures      []string          `json:"pictures"`
}

func judge(history History, pictures string, timeout time.Duration) Verdict {
	verdict := Verdict{Verdict: "ok", Conversations: map[string]string{}, Pictures: []string{}}
	partitions := partition(history)
	names := make([]string, 0, len(partitions))
	for name := range partitions {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		verdict.Operations += len(partitions[name])
		result, info := porcupine.CheckOperationsVerbose(model, partitions[name], timeout)
		if result == porcupine.Ok {
			continue
		}
		verdict.Conversations[name] = strings.ToLower(string(result))
		if verdict.Verdict != "illegal" {
			verdict.Verdict = verdict.Conversations[name]
		}
		if pictures != "" {
			verdict.Pictures = append(verdict.Pictures, picture(history, info, pictures, name))
		}
	}
	return verdict
}

func picture(history History, info porcupine.LinearizationInfo, directory, name string) string {
	if history.Window != nil {
		info.AddAnnotations([]porcupine.Annotation{{
			Tag: "fault", Description: history.Window.Name,
			Start: nanoseconds(history.Window.Began), End: nanoseconds(history.Window.Ended), BackgroundColor: "#efaefc",
		}})
	}
	path := filepath.Join(directory, strings.NewReplacer(":", "_", "/", "_").Replace(name)+".html")
	if err := porcupine.VisualizePath(model, info, path); err != nil {
		log.Fatal(err)
	}
	return path
}

// partition turns the evidence into operations on lists, by conversation.
func partition(history History) map[string][]porcupine.Operation {
	partitions := map[string][]porcupine.Operation{}
	var end int64
	for _, operation := range history.Operations {
		for _, attempt := range operation.Attempts {
			end = max(end, nanoseconds(attempt.Returned))
		}
	}
	trace := traces(history)
	for _, operation := range history.Operations {
		late := false
		for _, turn := range history.Stored[operation.Conversation] {
			late = late || turn.Late && contains(turn.Tokens, operation.Token)
		}
		name := operation.Conversation
		partitions[name] = append(partitions[name], steps(operation, history.Calls, late, trace[operation.Token], end)...)
	}
	for name := range history.Stored {
		if partitions[name] == nil {
			partitions[name] = nil
		}
	}
	for name := range partitions {
		read := porcupine.Operation{Input: readEnd{}, Output: history.Stored[name], Call: end + 1, Return: end + 2}
		partitions[name] = lanes(append(partitions[name], read))
	}
	return partitions
}

// steps of one turn. Requests whose outcome is unknown are one operation that never returns, or the beginning of the
// one that was answered at last; every further answer is an operation of its own, and must be the same answer.
func steps(operation Operation, calls []ModelCall, late, traced bool, end int64) []porcupine.Operation {
	var answered []Attempt
	for _, attempt := range operation.Attempts {
		if attempt.Outcome == "ok" {
			answered = append(answered, attempt)
		}
	}
	sort.SliceStable(answered, func(i, j int) bool { return answered[i].Returned < answered[j].Returned })
	invoked := nanoseconds(operation.Invoked)
	if len(answered) == 0 {
		// A refused turn that left no trace did not happen.
		if operation.Outcome == "refused" && !traced {
			return nil
		}
		return []porcupine.Operation{{Input: turn{operation.Token}, Output: answer{}, Call: invoked, Return: end + 3}}
	}
	view := viewOf(operation.Token, answered[0].Reply, calls)
	var steps []porcupine.Operation
	if late && view != nil {
		// It was appended after what came between, and says so: what it read stood there at some moment of its time.
		steps = append(steps, porcupine.Operation{
			Input: read{operation.Token}, Output: *view, Call: invoked, Return: nanoseconds(answered[0].Returned),
		})
		view = nil
	}
	for number, attempt := range answered {
		call := nanoseconds(attempt.Invoked)
		if number == 0 {
			call = invoked
		}
		steps = append(steps, porcupine.Operation{
			Input:  turn{operation.Token},
			Output: answer{known: true, reply: folded(attempt.Reply), replica: attempt.Replica, view: view},
			Call:   call, Return: nanoseconds(attempt.Returned),
		})
		view = nil
	}
	return steps
}

// traces are the tokens that were seen anywhere but at their clients.
func traces(history History) map[string]bool {
	seen := map[string]bool{}
	for _, turns := range history.Stored {
		for _, turn := range turns {
			for _, token := range turn.Tokens {
				seen[token] = true
			}
		}
	}
	for _, call := range history.Calls {
		// A call that ends with a turn is that turn's own; one that goes on shows it to somebody else.
		for _, token := range call.Tokens[:max(0, len(call.Tokens)-1)] {
			seen[token] = true
		}
	}
	return seen
}

// viewOf finds what the call behind an answer showed before the turn itself; nil when no such call is known.
func viewOf(token, reply string, calls []ModelCall) *[]string {
	var found *[]string
	for _, call := range calls {
		last := len(call.Tokens) - 1
		if call.Outcome == "answered" && last >= 0 && call.Tokens[last] == token && folded(call.Reply) == folded(reply) {
			shown := call.Tokens[:last]
			found = &shown
		}
	}
	return found
}

// lanes gives every operation a line of the picture that is free at its time.
func lanes(operations []porcupine.Operation) []porcupine.Operation {
	sort.SliceStable(operations, func(i, j int) bool { return operations[i].Call < operations[j].Call })
	var busy []int64
	for index := range operations {
		lane := 0
		for lane < len(busy) && busy[lane] >= operations[index].Call {
			lane++
		}
		if lane == len(busy) {
			busy = append(busy, 0)
		}
		busy[lane] = operations[index].Return
		operations[index].ClientId = lane
	}
	return operations
}

func nanoseconds(seconds float64) int64 { return int64(math.Round(seconds * 1e9)) }

func folded(text string) string { return strings.Join(strings.Fields(text), " ") }

func contains(tokens []string, token string) bool {
	for _, one := range tokens {
		if one == token {
			return true
		}
	}
	return false
}

func describe(input, output any) string {
	switch input := input.(type) {
	case turn:
		answer := output.(answer)
		switch {
		case !answer.known:
			return fmt.Sprintf("%s -> ?", input.token)
		case answer.view == nil:
			return fmt.Sprintf("%s -> answered by %s", input.token, answer.replica)
		}
		return fmt.Sprintf("%s -> answered by %s, saw [%s]", input.token, answer.replica, strings.Join(*answer.view, " "))
	case read:
		return fmt.Sprintf("%s (late) saw [%s]", input.token, strings.Join(output.([]string), " "))
	}
	var tokens []string
	for _, turn := range output.([]StoredTurn) {
		tokens = append(tokens, turn.Tokens...)
	}
	return fmt.Sprintf("Redis at the end: [%s]", strings.Join(tokens, " "))
}
