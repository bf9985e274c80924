// Streams a chat completion with a signed request; needs nothing but Go's standard library.
package main

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"
)

// sign puts the Authorization header into a request whose body is body.
func sign(request *http.Request, keyID, secret string, body []byte) {
	timestamp, random := fmt.Sprint(time.Now().Unix()), make([]byte, 16)
	rand.Read(random) // never fails since Go 1.24
	nonce, digest := fmt.Sprintf("%x", random), fmt.Sprintf("%x", sha256.Sum256(body))
	text := strings.Join([]string{"TG-HMAC-SHA256", request.Method, request.URL.EscapedPath(),
		request.URL.RawQuery, timestamp, nonce, digest}, "\n")
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(text))
	request.Header.Set("Authorization", fmt.Sprintf(
		"TG-HMAC-SHA256 id=%s, timestamp=%s, nonce=%s, digest=%s, signature=%x",
		keyID, timestamp, nonce, digest, mac.Sum(nil)))
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	url := os.Getenv("TIDEGATE_URL") + "/v1/chat/completions"
	body := []byte(`{"model":"deepseek-flash","stream":true,` +
		`"messages":[{"role":"user","content":"Say hello."}]}`)
	request, err := http.NewRequest("POST", url, bytes.NewReader(body))
	check(err)
	request.Header.Set("Content-Type", "application/json")
	sign(request, os.Getenv("TIDEGATE_KEY_ID"), os.Getenv("TIDEGATE_SECRET"), body)
	answer, err := http.DefaultClient.Do(request)
	check(err)
	lines := bufio.NewScanner(answer.Body)
	for answer.StatusCode == http.StatusOK && lines.Scan() {
		data, found := strings.CutPrefix(lines.Text(), "data: ")
		if data == "[DONE]" {
			fmt.Println()
			return
		} else if !found {
			continue
		}
		var event struct {
			Error   any
			Choices []struct{ Delta struct{ Content string } }
		}
		check(json.Unmarshal([]byte(data), &event))
		if event.Error != nil {
			log.Fatal(event.Error)
		}
		for _, choice := range event.Choices {
			fmt.Print(choice.Delta.Content)
		}
	}
	rest := new(bytes.Buffer)
	rest.ReadFrom(answer.Body)
	log.Fatal(answer.Status, ", and no whole answer: ", rest)
}
