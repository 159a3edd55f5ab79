// Command facts calls a server by the official Go SDK, and prints what it gave, for the test beside it to judge.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"reflect"
	"time"

	"github.com/cloudflare/cloudflare-go/v7/accounts"
	"github.com/cloudflare/cloudflare-go/v7/custom_certificates"
	"github.com/cloudflare/cloudflare-go/v7/custom_csrs"
	"github.com/cloudflare/cloudflare-go/v7/option"
	"github.com/cloudflare/cloudflare-go/v7/shared"
	"github.com/cloudflare/cloudflare-go/v7/user"
	"github.com/cloudflare/cloudflare-go/v7/zones"
)

type facts = map[string]any

type fields = map[string]any

// with fills in parameters by the names of their fields. The SDK's own function for that is in its root package, which
// takes minutes to compile.
func with[T any](values fields) T {
	var made T
	fill(reflect.ValueOf(&made).Elem(), values)
	return made
}

func fill(made reflect.Value, values fields) {
	for name, value := range values {
		field := made.FieldByName(name)
		if inner, ok := value.(fields); ok && !field.FieldByName("Present").IsValid() {
			fill(field, inner)
			continue
		}
		target := field.FieldByName("Value")
		field.FieldByName("Present").SetBool(true)
		switch value := value.(type) {
		case fields:
			fill(target, value)
		case []fields:
			list := reflect.MakeSlice(target.Type(), len(value), len(value))
			for index, each := range value {
				fill(list.Index(index), each)
			}
			target.Set(list)
		default:
			if target.Kind() == reflect.Interface {
				target.Set(reflect.ValueOf(value))
			} else {
				target.Set(reflect.ValueOf(value).Convert(target.Type()))
			}
		}
	}
}

func must[T any](found T, err error) T {
	if err != nil {
		panic(err)
	}
	return found
}

// refused is what the SDK tells of a refusal: its status and codes, and how many requests it made for it.
func refused(err error) any {
	requests := attempts
	attempts = 0
	var told interface{ DumpResponse(bool) []byte }
	if !errors.As(err, &told) {
		return fmt.Sprint(err)
	}
	value := reflect.ValueOf(told).Elem()
	var codes []int64
	for _, each := range value.FieldByName("Errors").Interface().([]shared.ErrorData) {
		codes = append(codes, each.Code)
	}
	return []any{value.FieldByName("StatusCode").Int(), codes, requests}
}

var attempts int

type counting struct{}

func (counting) Do(request *http.Request) (*http.Response, error) {
	attempts++
	return http.DefaultClient.Do(request)
}

var ctx = context.Background()

func main() {
	base := []option.RequestOption{option.WithBaseURL(os.Getenv("CLOUDFLARE_BASE_URL") + "/"), option.WithHTTPClient(counting{})}
	asToken := append(base, option.WithAPIToken(os.Getenv("CLOUDFLARE_API_TOKEN")))
	asUser := append(base[:2:2], option.WithAPIEmail(os.Getenv("OLDER_EMAIL")), option.WithAPIKey(os.Getenv("OLDER_KEY")))
	zone := os.Getenv("CLOUDFLARE_ZONE_ID")
	told := facts{
		"csr of the account": csrs(asToken, fields{"AccountID": os.Getenv("CLOUDFLARE_ACCOUNT_ID")}),
		"csr of the zone":    csrs(asToken, fields{"ZoneID": zone}),
		"certificate":        certificate(asToken, zone),
		"tenant":             tenant(asUser),
		"user":               must(user.NewUserService(asUser...).Get(ctx)).Email,
	}
	_, err := user.NewUserService(asToken...).Get(ctx)
	attempts = 1
	told["user of an account's token"] = refused(err)
	fmt.Println(string(must(json.Marshal(told))))
}

func subject(where fields, more fields) custom_csrs.CustomCsrNewParams {
	all := fields{"CommonName": "www.example.com", "Country": "US", "State": "California", "Locality": "San Francisco",
		"Organization": "Example, Inc.", "Sans": []string{"www.example.com", "example.com"}, "KeyType": "p256v1"}
	for _, each := range []fields{where, more} {
		for name, value := range each {
			all[name] = value
		}
	}
	return with[custom_csrs.CustomCsrNewParams](all)
}

func csrs(opts []option.RequestOption, where fields) facts {
	service, mark := custom_csrs.NewCustomCsrService(opts...), fmt.Sprint("go ", time.Now().UnixNano())
	var made []string
	for range 7 {
		made = append(made, must(service.New(ctx, subject(where, fields{"Name": mark, "Description": "d"}))).ID)
	}
	found := must(service.Get(ctx, made[0], with[custom_csrs.CustomCsrGetParams](where)))
	block, _ := pem.Decode([]byte(found.Csr))
	parsed := must(x509.ParseCertificateRequest(block.Bytes))
	var listed []string
	query := fields{"PerPage": 5.0}
	for name, value := range where {
		query[name] = value
	}
	pages := service.ListAutoPaging(ctx, with[custom_csrs.CustomCsrListParams](query))
	for pages.Next() {
		if pages.Current().Name == mark {
			listed = append(listed, pages.Current().ID)
		}
	}
	deleted := must(service.Delete(ctx, made[0], with[custom_csrs.CustomCsrDeleteParams](where))).ID
	attempts = 0
	_, gone := service.Get(ctx, made[0], with[custom_csrs.CustomCsrGetParams](where))
	missing := refused(gone)
	_, wrong := service.New(ctx, subject(where, fields{"Country": "", "Sans": []string{"a b"}}))
	bad := refused(wrong)
	once := option.WithHeader("Idempotency-Key", mark)
	first := must(service.New(ctx, subject(where, nil), once)).ID
	again := must(service.New(ctx, subject(where, nil), once)).ID
	attempts = 0
	_, another := service.New(ctx, subject(where, fields{"Country": "DE"}), once)
	return facts{
		"made": made, "listed": listed, "deleted": deleted, "missing": missing, "bad": bad, "conflict": refused(another),
		"idempotent": first == again, "signed": parsed.CheckSignature() == nil, "names": parsed.DNSNames,
		"fields": []any{found.Name, found.Description, found.CommonName, found.Sans, found.KeyType, found.OrganizationalUnit},
		"pages":  pages.Err() == nil,
	}
}

// certificate signs a CSR with a CA of its own, and uploads what it signed twice.
func certificate(opts []option.RequestOption, zone string) facts {
	csr := must(custom_csrs.NewCustomCsrService(opts...).New(ctx, subject(fields{"ZoneID": zone}, nil)))
	block, _ := pem.Decode([]byte(csr.Csr))
	parsed := must(x509.ParseCertificateRequest(block.Bytes))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	now := time.Now()
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Go CA"}, NotBefore: now,
		NotAfter: now.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: parsed.Subject, DNSNames: parsed.DNSNames,
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 1, 0), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der := must(x509.CreateCertificate(rand.Reader, leaf, ca, parsed.PublicKey, key))
	service := custom_certificates.NewCustomCertificateService(opts...)
	body := with[custom_certificates.CustomCertificateNewParams](fields{"ZoneID": zone, "BundleMethod": "force",
		"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), "CustomCsrID": csr.ID,
		"GeoRestrictions": fields{"Label": "eu"}, "Type": "sni_custom"})
	made, twin := must(service.New(ctx, body)), must(service.New(ctx, body))
	in := with[custom_certificates.CustomCertificateGetParams](fields{"ZoneID": zone})
	found := must(service.Get(ctx, made.ID, in))
	changed := must(service.Edit(ctx, made.ID, with[custom_certificates.CustomCertificateEditParams](
		fields{"ZoneID": zone, "Certificate": body.Certificate.Value})))
	attempts = 0
	_, inUse := custom_csrs.NewCustomCsrService(opts...).Delete(ctx, csr.ID, with[custom_csrs.CustomCsrDeleteParams](fields{"ZoneID": zone}))
	conflict := refused(inUse)
	for _, id := range []string{twin.ID, made.ID} {
		must(service.Delete(ctx, id, with[custom_certificates.CustomCertificateDeleteParams](fields{"ZoneID": zone})))
	}
	attempts = 0
	_, gone := service.Get(ctx, made.ID, in)
	return facts{"twins": made.ID != twin.ID, "hosts": found.Hosts, "status": found.Status, "type": found.BundleMethod,
		"csr": found.CustomCsrID == csr.ID, "unchanged": changed.ID == made.ID, "in use": conflict, "missing": refused(gone)}
}

// tenant makes an account with a zone and a token, reads its log, and deletes all of them.
func tenant(opts []option.RequestOption) facts {
	service, name := accounts.NewAccountService(opts...), fmt.Sprint("Go ", time.Now().UnixNano())
	made := must(service.New(ctx, with[accounts.AccountNewParams](fields{"Name": name})))
	account := fields{"AccountID": made.ID}
	settings := fields{"AbuseContactEmail": "abuse@example.com", "EnforceTwofactor": true}
	changed := must(service.Update(ctx, with[accounts.AccountUpdateParams](fields{"AccountID": made.ID,
		"Account": fields{"ID": made.ID, "Name": name + "!", "Type": "standard", "Settings": settings}})))
	ofZones := zones.NewZoneService(opts...)
	zone := must(ofZones.New(ctx, with[zones.ZoneNewParams](fields{"Account": fields{"ID": made.ID}, "Name": "münchen.example"})))
	edited := must(ofZones.Edit(ctx, with[zones.ZoneEditParams](fields{"ZoneID": zone.ID, "Paused": true,
		"VanityNameServers": []string{"ns1.example.com"}})))
	listed := must(ofZones.List(ctx, with[zones.ZoneListParams](fields{"Account": fields{"ID": made.ID}, "Name": "contains:nchen"})))
	groups := must(accounts.NewTokenPermissionGroupService(opts...).List(ctx,
		with[accounts.TokenPermissionGroupListParams](fields{"AccountID": made.ID, "Name": "Account Settings Read"})))
	ends := time.Now().AddDate(1, 0, 0).In(time.FixedZone("", 2*60*60)).Truncate(time.Second)
	resources := shared.TokenPolicyResourcesIAMResourcesTypeObjectStringParam{"com.cloudflare.api.account." + made.ID: "*"}
	token := must(service.Tokens.New(ctx, with[accounts.TokenNewParams](fields{"AccountID": made.ID, "Name": "go",
		"ExpiresOn": ends, "Policies": []fields{{"Effect": "allow", "Resources": resources,
			"PermissionGroups": []fields{{"ID": groups.Result[0].ID}}}}})))
	read := must(service.Tokens.Get(ctx, token.ID, with[accounts.TokenGetParams](account)))
	rolled := must(service.Tokens.Value.Update(ctx, token.ID, with[accounts.TokenValueUpdateParams](account)))
	own := append(opts[:2:2], option.WithAPIToken(string(*rolled)))
	verified := must(accounts.NewTokenService(own...).Verify(ctx, with[accounts.TokenVerifyParams](account)))
	window := fields{"AccountID": made.ID, "Since": time.Now().AddDate(0, 0, -1), "Before": time.Now().AddDate(0, 0, 2)}
	log := must(service.Logs.Audit.List(ctx, with[accounts.LogAuditListParams](window)))
	window["ActionTime"] = log.Result[0].Action.Time
	history := must(service.Logs.Audit.History(ctx, log.Result[0].ID, with[accounts.LogAuditHistoryParams](window)))
	categories := must(service.Logs.Audit.ProductCategories(ctx, with[accounts.LogAuditProductCategoriesParams](account)))
	must(service.Tokens.Delete(ctx, token.ID, with[accounts.TokenDeleteParams](account)))
	must(ofZones.Delete(ctx, with[zones.ZoneDeleteParams](fields{"ZoneID": zone.ID})))
	must(service.Delete(ctx, with[accounts.AccountDeleteParams](account)))
	attempts = 0
	_, ofAccount := service.Get(ctx, with[accounts.AccountGetParams](account))
	accountGone := refused(ofAccount)
	_, ofZone := ofZones.Get(ctx, with[zones.ZoneGetParams](fields{"ZoneID": zone.ID}))
	return facts{
		"name": made.Name == name, "renamed": changed.Name == name+"!", "settings": []any{
			changed.Settings.AbuseContactEmail, changed.Settings.EnforceTwofactor},
		"zone":   []any{zone.Name, zone.Type, zone.Owner.ID == made.ID, zone.Meta.PhishingDetected},
		"edited": []any{edited.Paused, edited.VanityNameServers}, "listed": len(listed.Result),
		"expires": read.ExpiresOn.Equal(ends) && read.ExpiresOn.Format(time.RFC3339) == ends.Format(time.RFC3339),
		"token":   []any{token.Value != "", read.Status, verified.Status}, "history": len(*history) > 0,
		"products": len(categories.Result) > 0, "account gone": accountGone, "zone gone": refused(ofZone),
	}
}
